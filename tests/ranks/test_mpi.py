"""The compressors over mpi4py, in a program that knows neither Horovod nor a framework."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.jobs

PROGRAM = """
import sys
import numpy as np
from hvd_compress import Exchange, Layout, Simulation, methods, parse
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.transports.mpi import MPITransport

transport = MPITransport()
layout = Layout.of([("weights", (30, 20)), ("bias", (7,))])
for name in methods():
    exchange = Exchange(parse(name), layout, NumpyOps(), transport, name=name)
    simulation = Simulation(parse(name), layout, transport.workers)
    for step in range(3):
        gradients = [np.random.default_rng([step, r]).standard_normal(607).astype("f4") for r in range(3)]
        got = exchange.reduce(gradients[transport.rank])
        expected = simulation.reduce(gradients)[transport.rank].mean
        assert np.allclose(got, expected, rtol=2e-3, atol=2e-3), name
assert not {"horovod", "torch", "tensorflow"} & set(sys.modules)
print("rank", transport.rank, "is done")
"""


def test_numpy_under_mpirun_gives_what_the_simulation_gives():
    command = ["mpirun", "-np", "3", sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} is done" for rank in range(3)]
