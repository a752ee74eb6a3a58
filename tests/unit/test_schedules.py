"""When servers give and apply: any order of events keeps the bound, and nothing waits for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_compress.parameter_server.runtime.schedules import BoundedDelay, Synchronous


@given(
    most=st.integers(0, 9),
    workers=st.integers(1, 5),
    order=st.lists(st.integers(0, 10**6), min_size=200, max_size=200),
)
def test_the_delay_is_bounded_whoever_comes_when(most, workers, order):
    """Each worker has up to two models out and answers them in turn; `order` says who acts next."""
    schedule = BoundedDelay(60, most)
    out = {worker: [] for worker in range(workers)}
    answered, everyone = {}, set(range(workers))
    for number in order * 3:
        worker = number % workers
        if number // workers % 2 and out[worker]:
            answered[out[worker].pop(0).number] = None
        elif len(out[worker]) < 2 and not schedule.exhausted and schedule.may_give(worker):
            out[worker].append(schedule.give(worker))
        while tickets := schedule.next_step(answered, everyone):
            del answered[tickets[0].number]
            schedule.step(tickets)
        waiting = set(schedule.given) - set(answered)
        assert waiting or not answered, "answers wait, and nothing is out that could come before them"
    assert max(schedule.delays, default=0) <= most
    assert schedule.version <= 60


def test_what_is_withdrawn_is_waited_for_no_more():
    schedule = BoundedDelay(10, 1)
    old, new = schedule.give(0), schedule.give(1)
    assert not schedule.may_give(2)
    schedule.step(schedule.next_step({new.number: None}, {0, 1}))
    third = schedule.give(1)
    assert not schedule.next_step({third.number: None}, {0, 1})  # the first would be too late
    schedule.withdraw(old)
    assert schedule.next_step({third.number: None}, {1}) == [third]


@pytest.mark.parametrize("lost", [False, True])
def test_a_synchronous_step_takes_all_workers_in_their_order(lost):
    schedule = Synchronous(2)
    tickets = {worker: schedule.give(worker) for worker in (3, 1, 2)}
    assert not any(schedule.may_give(worker) for worker in tickets)
    answered = {tickets[3].number: None, tickets[1].number: None}
    assert not schedule.next_step(answered, {1, 2, 3})
    if lost:
        schedule.withdraw(tickets[2])
    else:
        answered[tickets[2].number] = None
    found = schedule.next_step(answered, {1, 3} if lost else {1, 2, 3})
    assert [ticket.worker for ticket in found] == ([1, 3] if lost else [1, 2, 3])
    schedule.step(found)
    assert schedule.delays == {0: len(found)}
    assert schedule.may_give(1)
    assert not schedule.exhausted
