import importlib.util

from hypothesis import HealthCheck, settings

# PyTorch's CUDA build loads Triton late, and where TensorFlow is loaded by then, that ends the process.
if importlib.util.find_spec("triton"):
    import triton  # noqa: F401

settings.register_profile(
    "tests", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
