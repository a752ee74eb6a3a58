"""Where the time of a step goes under DDP: phases that add up, and what overlaps."""

import time

import pytest
from slow_training import NAP, SlowSGD, slow_model, step
from timelines import since, total
from torch.nn.parallel import DistributedDataParallel

from hvd_compress.torch import ddp

STEPS = 5
SPECS = ["none", "topk(ratio=0.1)", "powersgd"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_phases_add_up_and_what_overlaps_is_hidden(spec):
    model = DistributedDataParallel(slow_model(), bucket_cap_mb=0.001)
    compression = ddp.register(model, spec, bucket_bytes=1)
    optimizer = SlowSGD(model.parameters(), lr=0.1)
    for number in range(3):  # in which DDP and the hook find their buckets
        step(model, optimizer, number)
    earlier, began = compression.compression_stats(phases=True)["phases"], time.perf_counter()
    for number in range(STEPS):
        step(model, optimizer, number)
    wall = time.perf_counter() - began
    phases = since(compression.compression_stats(phases=True)["phases"], earlier)
    assert total(phases) == pytest.approx(wall, rel=0.1)
    assert phases["computing"] >= 2 * NAP * STEPS
    assert phases["optimizer"] >= NAP * STEPS
    assert phases["wire"]["hidden"] >= NAP * STEPS  # the last layers' buckets are under way during the backward pass
    assert 0 < phases["encode"]["in_backward"] <= phases["encode"]["exposed"]
