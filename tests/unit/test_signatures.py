"""Horovod's arguments, in its order and with its defaults, are those of what stands in for it here."""

import importlib
import inspect

import pytest

from hvd_compress.transports.horovod import op_name

PAIRS = [
    ("horovod.torch.DistributedOptimizer", "hvd_compress.torch.DistributedOptimizer"),
    ("horovod.tensorflow.DistributedGradientTape", "hvd_compress.tensorflow.DistributedGradientTape"),
    ("horovod.tensorflow.keras.DistributedOptimizer", "hvd_compress.tensorflow.keras.DistributedOptimizer"),
]


NOT_PASSED_ON = {
    "DistributedOptimizer",
    "PartialDistributedGradientTape",
    "load_model",
    "broadcast_global_variables",
    "Compression",
}


def arguments(path):
    module, name = path.rsplit(".", 1)
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters.values())


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda path: path.split(".", 1)[1])
def test_arguments_are_those_of_horovod(theirs, ours):
    theirs, ours = arguments(theirs), arguments(ours)
    assert [argument.name for argument in ours[: len(theirs)]] == [argument.name for argument in theirs]
    for here, there in zip(ours, theirs, strict=False):
        assert here.kind == there.kind
        if here.name == "compression":
            assert repr(here.default) == "Compression('none')"
        elif here.name == "op":
            assert op_name(here.default, "torch") == op_name(there.default, "torch")
        elif here.name == "process_set":  # PyTorch's part must do without Horovod: None stands for all processes
            assert here.default in (None, there.default)
        else:
            assert here.default == there.default, here.name
    further = ours[len(theirs) :]
    assert all(argument.kind is argument.KEYWORD_ONLY for argument in further)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_spec_from_a_command_line(framework):
    compression = importlib.import_module(f"hvd_compress.{framework}").Compression
    parsed = compression.parse("topk(ratio=0.02, values=fp16)")
    assert repr(parsed) == "Compression('topk(ratio=0.02, values=fp16)')"
    assert type(parsed) is type(compression.topk())
    with pytest.raises(ValueError, match="unknown compressor 'topq'"):
        compression.parse("topq")
    with pytest.raises(TypeError, match="got 3"):
        compression.parse(3)


def test_what_is_not_here_is_horovods():
    import horovod.tensorflow as of_tensorflow
    import horovod.tensorflow.keras as of_keras
    import horovod.torch as of_torch

    import hvd_compress.tensorflow as tensorflow
    import hvd_compress.tensorflow.keras as keras
    import hvd_compress.torch as torch

    for here, there in ((torch, of_torch), (tensorflow, of_tensorflow), (keras, of_keras)):
        for name, found in vars(there).items():
            if callable(found) and not name.startswith("_") and name not in {*here.__all__, *NOT_PASSED_ON}:
                assert getattr(here, name) == found, name  # and no module of this project's
    assert torch.elastic is of_torch.elastic
    assert torch.ddp.__name__ == "hvd_compress.torch.ddp"
    assert keras.Average is of_keras.Average
    assert (tensorflow.keras, tensorflow.elastic.__name__) == (keras, "hvd_compress.tensorflow.elastic")
    for package, name, instead in (
        (torch, "nothing", "neither hvd_compress.torch nor horovod.torch has a 'nothing'"),
        (tensorflow, "DistributedOptimizer", r"hvd_compress\.tensorflow\.keras\.DistributedOptimizer, for Keras 3"),
        (keras, "callbacks", "BroadcastAtStart, MetricAverage"),
        (keras, "load_model", r"keras\.models\.load_model"),
    ):
        with pytest.raises(AttributeError, match=instead):
            getattr(package, name)
