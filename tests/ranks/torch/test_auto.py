"""compression="auto": after some steps all ranks change to the same method, and go on with the same weights."""

import copy
import logging
import warnings
from contextlib import nullcontext

import horovod.torch as hvd
import pytest
import torch
from torch_ranks import batch, flat, repeats, same_on_all_ranks, sgd, small_cnn, train

import hvd_compress.torch as hvdc
from hvd_compress import parse, spec
from hvd_compress.advice import auto, network
from hvd_compress.advice.auto import CANDIDATES, MEASURED, WARM_UP
from hvd_compress.transports import WorkerFailed

STEPS, TOPK = WARM_UP + MEASURED, spec(parse("topk(ratio=0.01)"))


def automatic(model, **settings):
    return hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), "auto", **settings)


def chosen(optimizer):
    """The method that all ranks use, or None before the choice."""
    told = hvd.allgather_object((optimizer._reducer.settings.chosen, spec(optimizer._reducer.settings.compression)))
    assert all(each == told[0] for each in told), told
    return told[0][1] if told[0][0] else None


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(network, "REPETITIONS", 1)


@pytest.fixture
def predicted(monkeypatch):
    """Let rank 0 predict one thing, and the other ranks another, in place of what they measure."""

    def let(first, others):
        def predict(self, *given):
            found = first if hvd.rank() == 0 else others
            if isinstance(found, Exception):
                raise found
            return dict.fromkeys(CANDIDATES, 9.0) | found

        monkeypatch.setattr(auto.Chooser, "_predict", predict)

    return let


def test_all_ranks_choose_alike_and_go_on():
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, STEPS - 1)
    assert chosen(optimizer) is None
    train(model, optimizer, 1, start=STEPS - 1)
    assert chosen(optimizer) in {spec(parse(candidate)) for candidate in CANDIDATES}
    assert same_on_all_ranks(train(model, optimizer, 5, start=STEPS))
    stats = optimizer.compression_stats()
    assert stats["steps"] == STEPS + 5
    assert stats["collectives"]["measurement"]["sent"] > sum(network.SIZES)


def test_the_first_steps_are_those_of_no_compression():
    model, other = small_cnn(), small_cnn()
    plain = hvdc.DistributedOptimizer(sgd(other), other.named_parameters())
    assert repeats(train(model, automatic(model), STEPS), train(other, plain, STEPS))


def test_the_slowest_rank_counts(predicted):
    predicted({"fp16": 1.0, "powersgd(rank=2)": 2.0}, {"fp16": 3.0, "powersgd(rank=2)": 2.0})
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, STEPS)
    assert chosen(optimizer) == spec(parse("powersgd(rank=2)"))
    assert same_on_all_ranks(train(model, optimizer, 5))


def test_what_is_not_worth_it_is_not_chosen(predicted):
    predicted({"none": 1.0, "fp16": 0.98}, {"none": 1.0, "fp16": 0.98})
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, STEPS)
    assert chosen(optimizer) == "none"
    assert same_on_all_ranks(train(model, optimizer, 2))


def test_residuals_of_a_rule_are_carried_over_the_choice(predicted):
    predicted({"fp16": 1.0}, {"fp16": 1.0})
    model = small_cnn()
    optimizer = automatic(model, rules=[("0.weight", "topk(ratio=0.01)")])
    train(model, optimizer, STEPS)
    assert chosen(optimizer) == "fp16"
    assert optimizer.compression_stats()["residual_norm"] > 0
    assert same_on_all_ranks(train(model, optimizer, 2))


def test_accumulation_and_unused_parameters(predicted):
    predicted({"topk(ratio=0.01)": 1.0}, {"topk(ratio=0.01)": 1.0})
    model = small_cnn()
    optimizer = automatic(model, backward_passes_per_step=2)
    for step in range(STEPS + 3):
        optimizer.zero_grad()
        for part in range(2):
            images, labels = batch(2 * step + part)
            hidden = model[:5](images)
            out = model[5](hidden) if (step + hvd.rank()) % 3 else hidden[:, :10]  # a layer that some ranks leave out
            torch.nn.functional.cross_entropy(out, labels).backward()
        optimizer.step()
    assert chosen(optimizer) == TOPK
    assert same_on_all_ranks(flat(model))


def test_a_scaler_that_skips_steps(predicted):
    predicted({"topk(ratio=0.01)": 1.0}, {"topk(ratio=0.01)": 1.0})
    model = small_cnn()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = automatic(model, grad_scaler=scaler)
    for step in range(STEPS + 3):
        inputs, labels = batch(step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        if step in (2, STEPS - 1, STEPS) and hvd.rank() == 0:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
    assert chosen(optimizer) == TOPK
    assert optimizer.compression_stats()["nonfinite_steps"] == 3
    assert same_on_all_ranks(flat(model))


def test_two_optimizers_choose_each_for_itself(predicted):
    predicted({"fp16": 1.0}, {"fp16": 1.0})
    models = [small_cnn(0), small_cnn(1)]
    optimizers = [automatic(model) for model in models]
    for step in range(2 * STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            if model is models[0] or step % 2:  # the second one takes half as many steps
                train(model, optimizer, 1, start=step)
        assert (chosen(optimizers[0]) is not None) == (step + 1 >= STEPS)
    assert chosen(optimizers[1]) == "fp16"
    assert all(same_on_all_ranks(flat(model)) for model in models)


# --- checkpoints


@pytest.mark.parametrize("saved_at", [0, 3, STEPS - 1, STEPS, STEPS + 2])
@pytest.mark.parametrize("loaded_at", [0, 2, STEPS, STEPS + 3])
def test_a_state_is_taken_whether_the_choice_was_made_or_not(saved_at, loaded_at, predicted):
    predicted({"topk(ratio=0.01)": 1.0}, {"topk(ratio=0.01)": 1.0})
    model, other = small_cnn(), small_cnn()
    optimizer, resumed = automatic(model), automatic(other)
    train(model, optimizer, saved_at)
    state = copy.deepcopy(optimizer.state_dict())
    train(other, resumed, loaded_at)
    resumed.load_state_dict(state)
    other.load_state_dict(model.state_dict())
    assert chosen(resumed) == (TOPK if saved_at >= STEPS else None)
    ahead = 3 if saved_at != STEPS - 1 else 0  # the step of the choice comes later in the resumed run
    assert repeats(train(model, optimizer, ahead, start=saved_at), train(other, resumed, ahead, start=saved_at))
    assert same_on_all_ranks(train(other, resumed, STEPS))
    assert chosen(resumed) == TOPK


def test_a_state_that_rank_0_alone_loads_brings_the_choice_to_all(predicted):
    predicted({"powersgd(rank=2)": 1.0}, {"powersgd(rank=2)": 1.0})
    model, other = small_cnn(), small_cnn()
    optimizer, resumed = automatic(model), automatic(other)
    train(model, optimizer, STEPS + 2)
    if hvd.rank() == 0:
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(optimizer.state_dict())
    hvd.broadcast_parameters(other.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(resumed, root_rank=0)
    with nullcontext() if hvd.rank() == 0 else pytest.warns(UserWarning, match="taken from there"):
        train(other, resumed, 1)
    assert chosen(resumed) == spec(parse("powersgd(rank=2)"))
    assert same_on_all_ranks(train(other, resumed, 3))


def test_another_methods_state_is_the_choice():
    model, other = small_cnn(), small_cnn()
    optimizer = hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), "qsgd(bits=2)")
    train(model, optimizer, 3)
    resumed = automatic(other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    assert repeats(train(model, optimizer, 3, start=3), train(other, resumed, 3, start=3))
    assert chosen(resumed) == spec(parse("qsgd(bits=2)"))


def test_a_refused_state_changes_nothing(predicted):
    predicted({"fp16": 1.0}, {"fp16": 1.0})
    model, other = small_cnn(), small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, STEPS)
    other_rules = hvdc.DistributedOptimizer(
        sgd(other), other.named_parameters(), "topk(ratio=0.1)", rules=[("0.weight", "none")]
    )
    train(other, other_rules, 2)
    keeps = copy.deepcopy(optimizer.state_dict())
    keeps["compression"]["compression"] = "dgc(ratio=0.1)"
    damaged = copy.deepcopy(other_rules.state_dict())
    damaged["compression"]["rules"] = []
    damaged["compression"]["buckets"][0]["state"]["step"] = -1
    unknown = copy.deepcopy(optimizer.state_dict())
    unknown["compression"]["compression"] = "nothing"
    of_a_larger_model = copy.deepcopy(other_rules.state_dict())
    of_a_larger_model["compression"] |= {"compression": "qsgd", "rules": []}
    of_a_larger_model["param_groups"].append(of_a_larger_model["param_groups"][0])
    ruled = other_rules.state_dict()
    for state in (ruled, keeps, damaged, unknown, of_a_larger_model):
        state["param_groups"][0]["lr"] = 99.0
    for state, said in [
        (of_a_larger_model, "parameter groups"),
        (ruled, "saved with rules"),
        (keeps, "keeps the momentum itself"),
        (damaged, "must be a number of steps"),
        (unknown, "unknown compressor 'nothing'"),
    ]:
        before = copy.deepcopy(optimizer._reducer.state_dict())
        with pytest.raises(ValueError, match=said):
            optimizer.load_state_dict(state)
        assert str(optimizer._reducer.state_dict()) == str(before)
        assert chosen(optimizer) == "fp16"
        assert optimizer.param_groups[0]["lr"] == 0.05
    assert same_on_all_ranks(train(model, optimizer, 2))


# --- errors


def test_an_error_on_one_rank_leaves_all_without_compression(predicted, caplog):
    predicted(RuntimeError("no memory"), {"fp16": 1.0})
    model = small_cnn()
    optimizer = automatic(model)
    with caplog.at_level(logging.WARNING, "hvd_compress"):
        train(model, optimizer, STEPS)
    assert chosen(optimizer) == "none"
    assert "rank 0: RuntimeError: no memory" in caplog.text
    assert same_on_all_ranks(train(model, optimizer, 3))


@pytest.mark.parametrize("where", ["first collective", "fourth collective", "gather", "end"])
def test_an_error_within_the_measurement_reaches_all_ranks(where, monkeypatch):
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, STEPS - 1)
    transport = optimizer._reducer.transport
    owner, name, call = {
        "first collective": (network, "_carry", 1),
        "fourth collective": (network, "_carry", 4),
        "gather": (transport, "gather_object", 3),
        "end": (network, "Measured", 1),
    }[where]
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise MemoryError("no room")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        if hvd.rank() == 0:
            patch.setattr(owner, name, failing)
        with pytest.raises(MemoryError if hvd.rank() == 0 else WorkerFailed, match="no room"):
            train(model, optimizer, 1)
    assert chosen(optimizer) is None
    assert same_on_all_ranks(train(model, optimizer, STEPS + 2))
    assert chosen(optimizer) is not None


@pytest.mark.parametrize("where", [1, 2, STEPS - 3, STEPS - 2, STEPS - 1, STEPS])
@pytest.mark.filterwarnings("ignore:rank . had the compressors' state")
def test_after_an_error_on_one_rank_all_count_anew(where):
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, where)
    before = chosen(optimizer)
    raised = None
    for step in (where, where + 1):  # the others learn of it in this step, or in their next one
        images, labels = batch(step)
        try:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            if hvd.rank() == 0:
                model[0].weight.grad.mul_(2)
            optimizer.step()
        except RuntimeError as error:
            raised = str(error)
            break
    assert "changed after loss.backward()" in raised
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    train(model, optimizer, 1)
    if before is None:
        assert chosen(optimizer) is None
        train(model, optimizer, STEPS - 1)
    assert chosen(optimizer) is not None
    assert same_on_all_ranks(train(model, optimizer, 2))


def test_a_step_that_is_not_finite_counts_on_all_ranks_alike():
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, 3)
    inputs, labels = batch(3)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    (loss * (float("nan") if hvd.rank() == 0 else 1.0)).backward()
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.synchronize()
    optimizer.zero_grad()
    train(model, optimizer, STEPS - 4)
    assert chosen(optimizer) is not None
    assert same_on_all_ranks(flat(model))


@pytest.mark.parametrize("where", [3, STEPS - 1])
def test_a_step_that_one_rank_alone_raises_in_counts_on_all_ranks(where):
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, where)
    inputs, labels = batch(where)
    optimizer.zero_grad()
    (torch.nn.functional.cross_entropy(model(inputs), labels) * float("nan")).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if hvd.rank() == 0 else "ignore")
        with pytest.raises(RuntimeWarning, match="not finite") if hvd.rank() == 0 else nullcontext():
            optimizer.synchronize()
    optimizer.zero_grad()
    train(model, optimizer, STEPS - 1 - where)
    assert chosen(optimizer) is not None
    assert same_on_all_ranks(train(model, optimizer, 2))


# --- what goes with it, and what does not


def test_a_step_after_synchronize_is_refused_from_the_first_on():
    model = small_cnn()
    optimizer = automatic(model)
    torch.nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    optimizer.synchronize()
    with pytest.raises(RuntimeError, match=r"compression=auto takes for gradients.*skip_synchronize"):
        optimizer.step()


def test_set_compression_ends_the_choice_and_auto_begins_it():
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, 3)
    optimizer.set_compression("topk(ratio=0.1)")
    train(model, optimizer, STEPS)
    assert chosen(optimizer) is None
    assert spec(optimizer._reducer.settings.compression) == "topk(ratio=0.1)"
    optimizer.set_compression("auto")
    train(model, optimizer, STEPS - 1)
    assert chosen(optimizer) is None
    assert same_on_all_ranks(train(model, optimizer, 2))
    assert chosen(optimizer) is not None


def test_set_compression_on_one_rank_in_the_step_of_the_choice_is_found_out():
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, STEPS)
    if hvd.rank() == 0:
        optimizer.set_compression("fp16")
    with pytest.raises(ValueError, match=r"disagree on compression: rank 0: fp16; ranks? 1.*: auto"):
        train(model, optimizer, 1)


def test_a_load_on_one_rank_in_the_step_of_the_choice_is_found_out():
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, STEPS - 3)
    if hvd.rank() == 0:
        optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="disagree on a change: not all called"):
        train(model, optimizer, 1)


def test_join_waits_for_the_choice():
    model = small_cnn()
    optimizer = automatic(model)
    train(model, optimizer, 2)
    with pytest.raises(RuntimeError, match=r"compression=\"auto\" measures"):
        hvd.join()
    assert same_on_all_ranks(train(model, optimizer, 2))


def test_others_refuse_auto_and_name_what_there_is():
    model = small_cnn()
    with pytest.raises(ValueError, match=r"'auto' works with .*DistributedOptimizer and ddp.register.*topk"):
        hvdc.CompressedAdam(
            model.parameters(), named_parameters=model.named_parameters(), warmup_steps=3, compression="auto"
        )
    with pytest.raises(ValueError, match=r"rule '\*': compression='auto' works with"):
        hvdc.DistributedOptimizer(sgd(model), model.named_parameters(), rules=[("*", "auto")])
