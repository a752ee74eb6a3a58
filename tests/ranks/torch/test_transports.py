"""The simulated workers, Horovod and mpi4py agree, on the result and on the bytes."""

import warnings

import horovod.torch as hvd
import numpy as np
import pytest
import torch

from hvd_compress import AllGather, AllReduce, Exchange, Layout, Simulation, methods, parse
from hvd_compress.ops.torch import TorchOps
from hvd_compress.reduction.agreement import WorkersDisagree
from hvd_compress.transports import WorkerFailed
from hvd_compress.transports.horovod_torch import HorovodTransport

LAYOUT = Layout.of([("a", (30, 20)), ("b", (7,)), ("c", (16, 3, 3, 3))])
SPECS = [*methods(), "topk(ratio=0.1, values=fp16)", "topk(ratio=0.02, scope=model)", "qsgd(bits=3, norm=l2)"]


def transport(kind, ops):
    if kind == "horovod":
        return HorovodTransport(name="test")
    if not hvd.mpi_enabled():
        pytest.skip("under Gloo there are no MPI ranks")
    from hvd_compress.transports.mpi import MPITransport

    return MPITransport(ops=ops)


@pytest.mark.parametrize("kind", ["horovod", "mpi"])
@pytest.mark.parametrize(
    "spec",
    [
        "sketched_sgd(k=300, momentum=0.5)",
        "sketched_sgd(p1=2, p2=4, momentum=0.5)",
        "sketched_sgd(heavymix=True, momentum=0)",
        "fetchsgd(momentum=0.5)",
    ],
)
def test_sketches_on_real_ranks_have_the_simulator_s_bits(spec, kind):
    """With numbers that add up exactly, for the order of a sum is each transport's own."""
    compressor, workers, layout = parse(spec), hvd.size(), Layout.flat(3000)
    simulation = Simulation(compressor, layout, workers, ops=TorchOps())
    exchange = Exchange(compressor, layout, TorchOps(), transport(kind, TorchOps()), name=f"{spec}.{kind}")
    for step in range(6):
        random = np.random.default_rng(step)
        vectors = [random.integers(-64, 65, layout.size).astype(np.float32) for _ in range(workers)]
        expected = simulation.reduce([torch.from_numpy(v.copy()) for v in vectors])[hvd.rank()].mean
        assert torch.equal(exchange.reduce(torch.from_numpy(vectors[hvd.rank()])), expected)
    assert expected.count_nonzero() > 0
    for name, array in simulation.states[hvd.rank()].local.items():
        assert torch.equal(exchange.state.local[name], array)


@pytest.mark.parametrize("kind", ["horovod", "mpi"])
@pytest.mark.parametrize("spec", SPECS)
def test_real_ranks_give_what_simulated_ones_give(spec, kind):
    compressor = parse(spec)
    simulation = Simulation(compressor, LAYOUT, hvd.size(), ops=TorchOps())
    exchange = Exchange(compressor, LAYOUT, TorchOps(), transport(kind, TorchOps()), seed=0)
    handed = 0
    for step in range(3):
        vectors = [
            torch.from_numpy(np.random.default_rng([step, rank]).standard_normal(LAYOUT.size).astype(np.float32))
            for rank in range(hvd.size())
        ]
        expected = simulation.reduce(vectors)[hvd.rank()].mean
        handed += sum(
            payloads[hvd.rank()].nbytes + 8 * (compressor.varying and kind == "horovod")
            for payloads in simulation.payloads
        )
        got = exchange.reduce(vectors[hvd.rank()])
        tolerance = 2e-3 if spec == "fp16" else 1e-5
        assert torch.allclose(got, expected, rtol=tolerance, atol=tolerance)
    counted = {kind: e["sent"] for kind, e in exchange.transport.traffic.collectives.items() if kind != "agreement"}
    assert counted.keys() == simulation.traffic.collectives.keys()
    assert sum(counted.values()) == handed
    if not compressor.varying:
        assert 8 * handed == 3 * compressor.payload_bits(LAYOUT)


@pytest.mark.parametrize("spec", ["topk(ratio=0.02)", "fetchsgd(columns=400, momentum=0)", "sketched_sgd(momentum=0)"])
def test_a_residual_that_grows_without_bound_is_told(spec):
    if hvd.size() > 2:
        pytest.skip("each rank looks at its own residual: two will do for the hundreds of steps")

    def run(growth):
        name = f"{spec}.{growth}"
        exchange = Exchange(parse(spec), Layout.flat(400), TorchOps(), transport("horovod", TorchOps()), name=name)
        for step in range(401):
            generator = torch.Generator().manual_seed(step)
            exchange.reduce(torch.randn(400, generator=generator) * growth**step)

    with pytest.warns(UserWarning, match="has doubled 3 times in 300 steps, to a norm of .*learning rate"):
        run(1.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(1.0)


@pytest.mark.parametrize("kind", ["horovod", "mpi"])
def test_collectives(kind):
    t = transport(kind, TorchOps())
    rank, size = hvd.rank(), hvd.size()

    def run(collective, name):
        return t.wait(t.start(collective, name))

    x = torch.arange(5.0) * (rank + 1)
    total = sum(range(1, size + 1))
    assert torch.equal(run(AllReduce(x, "sum"), "sum"), torch.arange(5.0) * total)
    assert torch.allclose(run(AllReduce(x, "mean"), "mean"), torch.arange(5.0) * total / size)
    assert torch.equal(run(AllReduce(x, "max"), "max"), torch.arange(5.0) * size)
    assert torch.equal(run(AllReduce(x.half(), "sum"), "half"), torch.arange(5.0).half() * total)
    payload = torch.full((3,), rank, dtype=torch.uint8)
    gathered = run(AllGather(payload), "fixed")
    assert [p.tolist() for p in gathered] == [[r] * 3 for r in range(size)]
    payload = torch.full((rank,), rank, dtype=torch.uint8)
    gathered = run(AllGather(payload, varying=True), "varying")
    assert [p.tolist() for p in gathered] == [[r] * r for r in range(size)]
    assert torch.equal(x, torch.arange(5.0) * (rank + 1))


def test_mpi_ranks_whose_arrays_differ_in_length_raise_together():
    t = transport("mpi", TorchOps())
    with pytest.raises(ValueError, match=r"differ in their bytes \(rank 0: 4, rank 1: 8"):
        t.start(AllReduce(torch.zeros(hvd.rank() + 1)), "x")


def test_mpi_failure_is_told():
    t = transport("mpi", TorchOps())
    if hvd.rank() == 1:
        t.fail(ZeroDivisionError("a bug"), [])
    else:
        with pytest.raises(WorkerFailed, match="rank 1 failed with ZeroDivisionError: a bug"):
            t.start(AllReduce(torch.zeros(3)), "x")


@pytest.mark.parametrize("kind", ["horovod", "mpi"])
def test_vectors_of_the_wrong_kind_on_one_rank(kind):
    exchange = Exchange(parse("topk"), Layout.flat(5), TorchOps(), transport(kind, TorchOps()), name=f"wrong.{kind}")
    exchange.reduce(torch.ones(5))
    for bad, error in ((torch.zeros(5, dtype=torch.int32), TypeError), (torch.zeros(4), ValueError)):
        with pytest.raises(error if hvd.rank() == 0 else WorkerFailed, match=r"torch\.int32|got \(4,\)"):
            exchange.reduce(bad if hvd.rank() == 0 else torch.ones(5))


@pytest.mark.parametrize("kind", ["horovod", "mpi"])
def test_workers_that_disagree(kind):
    spec = "qsgd" if hvd.rank() == 0 else "topk"
    exchange = Exchange(parse(spec), Layout.flat(50), TorchOps(), transport(kind, TorchOps()), name=f"differ.{kind}")
    with pytest.raises(WorkersDisagree, match=r"compression: rank 0: qsgd; ranks? 1.*: topk"):
        exchange.reduce(torch.ones(50))
