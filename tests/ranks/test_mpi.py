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

DTYPES = """
import ml_dtypes
import numpy as np
from hvd_compress import Exchange, Layout, methods, parse
from hvd_compress.ops.numpy import NumpyOps
from hvd_compress.transports import WorkerFailed
from hvd_compress.transports.mpi import MPITransport

transport = MPITransport()
layout = Layout.of([("weights", (30, 20)), ("bias", (7,))])
momentum, adam = parse("topk(feedback=momentum)"), parse("onebit(feedback=adam(start=1))")
for compressor in [*map(parse, methods()), momentum, momentum.plain, adam, adam.plain]:
    def steps(dtype):
        exchange = Exchange(compressor, layout, NumpyOps(), transport)
        for step in range(3):
            # Numbers of few bits, so that float16 holds them.
            own = np.random.default_rng([step, transport.rank]).integers(-64, 65, 607) / 64
            gradient = own.astype(dtype)
            mean = exchange.reduce(gradient)
            assert mean.dtype == dtype and np.array_equal(gradient, own.astype(dtype)), (compressor, dtype)
            yield mean

    exchange = Exchange(compressor, layout, NumpyOps(), transport)
    expected = list(steps(np.float32))
    for dtype, bits in ((np.float16, 10), (np.float64, 23), (np.longdouble, 23), (ml_dtypes.bfloat16, 7)):
        for got, wanted in zip(steps(dtype), expected, strict=True):
            got, near = got.astype("f4"), 2.0 ** (2 - bits)
            assert np.allclose(got, wanted, rtol=near, atol=near), (compressor, dtype)
    for dtype in ("int32", "uint8", "bool", "complex64"):
        try:
            exchange.reduce(np.zeros(607, dtype))
        except TypeError as error:
            assert str(error) == f"exchange: gradients must be of a real floating dtype, such as float32; got {dtype}"
        else:
            raise AssertionError(f"{dtype} was taken")
    try:  # of one rank alone
        exchange.reduce(np.zeros(607, "f4" if transport.rank else "i4"))
    except (TypeError if transport.rank == 0 else WorkerFailed) as error:
        assert "must be of a real floating dtype, such as float32; got int32" in str(error)
    else:
        raise AssertionError("integers were taken")

exact = Exchange(parse("none"), layout, NumpyOps(), transport)
own = np.full(607, 1 + 2.0**-40 * (1 + transport.rank))
assert exact.reduce(own)[0] == 1 + 2.0**-40 * (1 + transport.workers) / 2
print("rank", transport.rank, "is done")
"""

# Open MPI has room for 65532 communicators, MPICH for 2048. At the end, ranks are collected at different times.
MANY = """
import gc
import numpy as np
from mpi4py import MPI
from hvd_compress import AllReduce
from hvd_compress.transports.mpi import MPITransport

def total(transport):
    return transport.wait(transport.start(AllReduce(np.ones(3, "f4"), op="sum"), "ones"))[0]

comms = set()
for _ in range(70000):
    comms.add(MPITransport().comm.py2f())
assert len(comms) == 1, comms
for _ in range(3000):
    part = MPI.COMM_WORLD.Dup()
    first, second = MPITransport(part), MPITransport(part)
    assert first.comm != second.comm and total(first) == total(second) == 2
    comms |= {first.comm.py2f(), second.comm.py2f()}
    del first, second
    part.Free()
assert len(comms) < 10, comms
gc.disable()
for step in range(100):
    transport = MPITransport()
    transport.cycle = [transport]
    assert total(transport) == 2
    comms.add(transport.comm.py2f())
    if step % 10 == MPI.COMM_WORLD.rank:
        gc.collect()
assert len(comms) < 40, comms
print("rank", transport.rank, "is done")
"""


PROGRAMS = {"simulation": (PROGRAM, 3), "many": (MANY, 2), "dtypes-1": (DTYPES, 1), "dtypes-2": (DTYPES, 2)}


@pytest.mark.parametrize(("program", "ranks"), PROGRAMS.values(), ids=PROGRAMS)
def test_numpy_under_mpirun(program, ranks):
    command = ["mpirun", "-np", str(ranks), sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} is done" for rank in range(ranks)]
