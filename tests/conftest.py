import importlib.util
import os
from glob import glob

from hypothesis import HealthCheck, settings

# Without a GPU its kernels are interpreted, which Triton must know before it is loaded.
if not glob("/dev/nvidia[0-9]*"):
    os.environ["TRITON_INTERPRET"] = "1"

# PyTorch's CUDA build loads Triton late, and where TensorFlow is loaded by then, that ends the process.
if importlib.util.find_spec("triton"):
    import triton  # noqa: F401

# For every mpirun that a test starts: it may be root's, have more ranks than cores, and share the cores with others.
os.environ |= {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    # Ranks of one machine need no TCP; where it finds no interface, Open MPI sleeps for a second at every start.
    "OMPI_MCA_btl": "self,sm",
    # A rank that waits leaves its core to others instead of asking for messages all the time.
    "OMPI_MCA_mpi_yield_when_idle": "1",
}

settings.register_profile(
    "tests", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
