import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tests", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

# What runs on several ranks is started by test_ranks.py.
collect_ignore = [] if {"OMPI_COMM_WORLD_RANK", "HOROVOD_RANK"} & set(os.environ) else ["ranks"]
