"""Flow control of a stream, event by event: no cluster, no threads, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.streams.flow_control import Cancel, Drop, FlowControl, FlowOptions, HandOver


def flow(**options):
    return FlowControl(FlowOptions(**{"window": 4, **options}))


def arrive(control, *times):
    return [control.arrive(now)[0] for now in times]


def test_frames_are_handed_over_in_order_although_they_finish_in_another():
    control = flow()
    for index in arrive(control, 0.0, 0.0, 0.0):
        control.start(index)
    assert control.finish(2, 1.0) == (1.0, [])
    assert control.finish(0, 2.0) == (2.0, [HandOver(0)])
    assert control.finish(1, 3.0) == (3.0, [HandOver(1), HandOver(2)])
    assert control.is_idle


def test_unordered_frames_are_handed_over_as_they_finish():
    control = flow(is_ordered=False)
    for index in arrive(control, 0.0, 0.0):
        control.start(index)
    assert control.finish(1, 1.0)[1] == [HandOver(1)]
    assert control.finish(0, 1.0)[1] == [HandOver(0)]


def test_a_late_frame_is_dropped_at_its_deadline_and_frees_those_behind_it():
    control = flow(deadline=1.0, late="drop")
    for index in arrive(control, 0.0, 0.5):
        control.start(index)
    control.finish(1, 0.9)
    assert control.next_deadline() == 1.0
    assert control.expire(0.99) == []
    dropped = Drop(0, "deadline", 1.0)
    assert control.expire(1.0) == [dropped, Cancel(0), HandOver(0), HandOver(1)]
    assert control.finish(0, 1.1) == (None, [])


def test_a_frame_that_waits_past_its_deadline_is_never_started():
    control = flow(deadline=1.0, late="drop")
    arrive(control, 0.0)
    assert control.expire(2.0) == [Drop(0, "deadline", 2.0), HandOver(0)]
    assert control.startable() is None and control.is_idle


def test_late_frames_that_are_kept_have_no_timer():
    control = flow(deadline=1.0)
    control.start(*arrive(control, 0.0))
    assert control.next_deadline() is None and control.expire(5.0) == []
    age, instructions = control.finish(0, 5.0)
    assert control.is_late(age) and instructions == [HandOver(0)]


def test_the_newest_frame_takes_the_place_of_the_one_that_waits():
    control = flow(late="latest", window=1)
    control.start(*arrive(control, 0.0))
    arrive(control, 1.0)
    index, instructions = control.arrive(2.0)
    assert (index, instructions) == (2, [Drop(1, "newer", 1.0)])
    assert control.startable() is None  # the window is full
    assert control.finish(0, 3.0)[1] == [HandOver(0), HandOver(1)]
    assert control.startable() is None  # its result has not been taken
    control.take()
    assert control.startable() == 2


def test_frames_with_a_state_are_not_dropped_once_they_run():
    control = flow(deadline=1.0, late="drop", keeps_running=True)
    arrive(control, 0.0, 0.0)
    control.start(0)
    assert control.expire(2.0) == [Drop(1, "deadline", 2.0)]
    assert control.finish(0, 3.0) == (3.0, [HandOver(0), HandOver(1)])


def test_frames_that_start_again_wait_in_their_order_ahead_of_newer_ones():
    control = flow()
    for index in arrive(control, 0.0, 0.0, 0.0):
        control.start(index)
    arrive(control, 1.0)
    control.restart([2, 1])
    assert list(control.waiting) == [1, 2, 3] and control.running == {0}


@given(
    st.lists(st.sampled_from(["arrive", "start", "finish", "expire", "take"]), max_size=60),
    st.sampled_from(["keep", "drop", "latest"]),
    st.booleans(),
)
def test_every_frame_is_handed_over_exactly_once_whatever_happens(events, late, is_ordered):
    control = flow(deadline=None if late == "keep" else 3.0, late=late, is_ordered=is_ordered)
    told, now = [], 0.0

    def follow(instructions):
        told.extend(each.index for each in instructions if isinstance(each, HandOver))

    for event in [*events, *["start", "finish", "take"] * 70]:
        now += 1.0
        if event == "arrive":
            follow(control.arrive(now)[1])
        elif event == "start" and (index := control.startable()) is not None:
            control.start(index)
        elif event == "finish" and control.running:
            follow(control.finish(max(control.running), now)[1])
        elif event == "take" and control.untaken:
            control.take()
        elif event == "expire":
            follow(control.expire(now))
    assert sorted(told) == list(range(control.count))
    if is_ordered:
        assert told == sorted(told)


@pytest.mark.parametrize("late", ["drop", "latest"])
def test_deadlines_of_frames_that_are_done_are_forgotten(late):
    control = flow(deadline=1.0, late=late)
    control.start(*arrive(control, 0.0))
    control.finish(0, 0.5)
    assert control.next_deadline() is None
