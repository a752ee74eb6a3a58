"""The collectives of a job are measured by all ranks together, and all know the same of them."""

import horovod.torch as hvd
import pytest

from hvd_compress.advice.network import SIZES, measure
from hvd_compress.ops.torch import TorchOps
from hvd_compress.transports.horovod_torch import HorovodTransport


@pytest.mark.parametrize("kind", ["horovod", "mpi"])
def test_all_ranks_measure_the_same_network(kind):
    if kind == "mpi" and not hvd.mpi_enabled():
        pytest.skip("under Gloo there are no MPI ranks")
    if kind == "mpi":
        from hvd_compress.transports.mpi import MPITransport

        transport = MPITransport(ops=TorchOps())
    else:
        transport = HorovodTransport(name="measured")
    measured = measure(transport, TorchOps(), "measured")
    assert measured.hosts == hvd.size()
    told = transport.gather_object(measured.points, "told")
    assert all(answer == told[0] for answer in told)
    for points in measured.points.values():
        assert [size for size, _ in points] == list(SIZES)
        assert all(seconds > 0 for _, seconds in points)
    assert measured.ring(99).hosts == 99
