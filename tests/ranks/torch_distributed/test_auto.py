"""compression="auto" over process groups: under DDP the change comes between two backward passes, on all ranks."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch_training import RANK, batch, flat, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import parse, spec
from hvd_compress.advice import auto, network
from hvd_compress.advice.auto import CANDIDATES, MEASURED, WARM_UP
from hvd_compress.torch import ddp
from hvd_compress.transports import WorkerFailed

STEPS = WARM_UP + MEASURED


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(network, "REPETITIONS", 1)


@pytest.fixture
def predicted(monkeypatch):
    """Let a method be the best on all ranks, in place of what they measure."""

    def let(best):
        monkeypatch.setattr(auto.Chooser, "_predict", lambda *given: dict.fromkeys(CANDIDATES, 9.0) | {best: 1.0})

    return let


def told(item):
    items = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def chosen(wrapped):
    """The method that all ranks use, or None before the choice."""
    settings = wrapped._reducer.settings
    everybodys = told((settings.chosen, spec(settings.compression)))
    assert all(each == everybodys[0] for each in everybodys), everybodys
    return everybodys[0][1] if everybodys[0][0] else None


def equal_on_all_ranks(model):
    return all(torch.equal(torch.tensor(weights), flat(model)) for weights in told(flat(model).tolist()))


def registered(**settings):
    model = DistributedDataParallel(small_cnn(), **settings)
    return model, ddp.register(model, "auto", bucket_bytes=20_000), sgd(model)


def over_groups():
    model = small_cnn()
    return model, hvdc.DistributedOptimizer(
        sgd(model), model.named_parameters(), "auto", transport="torch.distributed", bucket_bytes=20_000
    )


@pytest.mark.parametrize("best", ["topk(ratio=0.01)", "fp16", "powersgd(rank=2)", "none", None])
@pytest.mark.parametrize("unused", [False, True])
def test_all_ranks_choose_alike_and_go_on(best, unused, predicted):
    if best:
        predicted(best)
    model, compression, optimizer = registered(find_unused_parameters=unused, bucket_cap_mb=0.001)
    train(model, optimizer, STEPS - 1)
    assert chosen(compression) is None
    train(model, optimizer, 1)
    assert chosen(compression) in {spec(parse(each)) for each in ([best] if best else CANDIDATES)}
    before = compression.compression_stats()["bytes_sent"]
    train(model, optimizer, 6)
    assert compression.compression_stats()["bytes_sent"] > before
    assert equal_on_all_ranks(model)


@pytest.mark.parametrize("best", ["qsgd(bits=4)", "powersgd(rank=2)"])
def test_an_optimizer_over_groups_takes_the_same_steps(best, predicted):
    predicted(best)
    model, compression, plain = registered()
    train(model, plain, STEPS + 4)
    other, optimizer = over_groups()
    train(other, optimizer, STEPS + 4)
    assert chosen(optimizer) == chosen(compression) == spec(parse(best))
    assert equal_on_all_ranks(model)
    assert torch.allclose(flat(model), flat(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("saved_at", "loaded_at"), [(2, STEPS + 1), (STEPS + 1, 0), (STEPS + 1, 2)])
def test_a_state_is_taken_whether_the_choice_was_made_or_not(saved_at, loaded_at, predicted):
    predicted("topk(ratio=0.01)")
    model, compression, optimizer = registered()
    train(model, optimizer, saved_at)
    state = copy.deepcopy([model.state_dict(), optimizer.state_dict(), compression.state_dict()])
    other, resumed, optimizer_again = registered()
    train(other, optimizer_again, loaded_at)
    for part, saved in zip((other, optimizer_again, resumed), state, strict=True):
        part.load_state_dict(saved)
    assert (chosen(resumed) is not None) == (saved_at > STEPS)
    train(model, optimizer, 3, start=saved_at)
    train(other, optimizer_again, 3, start=saved_at)
    assert torch.equal(flat(model), flat(other))
    train(other, optimizer_again, STEPS)
    assert chosen(resumed) == spec(parse("topk(ratio=0.01)"))
    assert equal_on_all_ranks(other)


def test_ranks_with_fewer_batches_join(predicted):
    predicted("fp16")
    model, compression, optimizer = registered()
    with model.join():
        for step in range(STEPS + 2 if RANK == 0 else STEPS - 3):
            optimizer.zero_grad()
            inputs, labels = batch(step)
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    assert chosen(compression) == "fp16"


@pytest.mark.parametrize("call", [1, 4])
def test_an_error_within_the_measurement_reaches_all_ranks(call, monkeypatch):
    model, optimizer = over_groups()
    train(model, optimizer, STEPS - 1)
    original, calls = network._carry, []

    def failing(*args):
        calls.append(args)
        if len(calls) == call:
            raise MemoryError("no room")
        original(*args)

    with monkeypatch.context() as patch:
        if RANK == 0:
            patch.setattr(network, "_carry", failing)
        with pytest.raises(MemoryError if RANK == 0 else WorkerFailed, match="no room"):
            train(model, optimizer, 1)
    train(model, optimizer, STEPS + 2)
    assert chosen(optimizer) is not None
    assert equal_on_all_ranks(model)


@pytest.mark.parametrize("where", [1, STEPS - 2, STEPS - 1, STEPS])
@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
def test_after_an_error_on_one_rank_all_count_anew(where):
    model, optimizer = over_groups()
    train(model, optimizer, where)
    before, raised = chosen(optimizer), None
    for step in (where, where + 1):  # the others learn of it in this step, or in their next one
        inputs, labels = batch(step)
        try:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            if RANK == 0:
                model[0].weight.grad.mul_(2)
            optimizer.step()
        except RuntimeError as error:
            raised = str(error)
            break
    assert "changed after loss.backward()" in raised
    train(model, optimizer, 1)
    if before is None:
        assert chosen(optimizer) is None
        train(model, optimizer, STEPS - 1)
    assert chosen(optimizer) is not None
