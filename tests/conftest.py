import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# PyTorch's CUDA build loads Triton late, and where TensorFlow is loaded by then, that ends the process.
if importlib.util.find_spec("triton"):
    import triton  # noqa: F401

settings.register_profile(
    "tests", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

# What runs on several ranks is started by test_ranks.py.
collect_ignore = [] if {"OMPI_COMM_WORLD_RANK", "HOROVOD_RANK"} & set(os.environ) else ["ranks", "ranks_tensorflow"]


# Files whose tests start jobs of several processes.
JOBS = {"digits", "double_quantization", "examples", "failing_servers", "frameworks", "mpi", "ranks", "setup"}
JOBS |= {"server_bench", "server_benchmarks", "server_jobs", "server_sgd", "server_sketch"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem.removeprefix("test_") in JOBS:
            item.add_marker(pytest.mark.jobs)
