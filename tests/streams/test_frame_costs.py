"""Seconds of frames as the scheduler tells them, and the threads that streams leave to others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dask_onnx.core.stream_records import STREAMS_TOPIC
from dask_onnx.streams.frame_costs import FrameCost, report_and_ask, shared_costs
from dask_onnx.streams.reserved_threads import ThreadUse, may_start

OLD, NEW = frozenset({"old"}), frozenset({"new"})


def test_the_cost_of_a_frame_is_that_of_the_frames_since_the_last_look():
    cost = FrameCost()
    cost.update(OLD, 2.0, 10)
    assert cost.seconds is None  # frames of before the first look may have been forgotten
    cost.update(OLD, 2.0, 10)
    assert cost.seconds is None
    cost.update(OLD, 3.0, 20)
    assert cost.seconds == pytest.approx(0.1)
    cost.update(OLD, 5.0, 23)  # too few to tell, and counted with the next ones
    assert cost.seconds == pytest.approx(0.1)
    cost.update(OLD, 6.0, 30)
    assert cost.seconds == pytest.approx(0.2)


def test_the_first_frames_which_build_sessions_do_not_count():
    cost = FrameCost()
    for total, finished in ((0.0, 0), (5.0, 10), (6.0, 20)):
        cost.update(NEW, total, finished)
    assert cost.seconds == pytest.approx(0.1)


def test_streams_of_one_kind_have_one_cost():
    kinds = {1: "a", 2: "a", 3: "a", 4: "b", 5: "c"}
    costs = {1: 0.1, 2: 0.3, 3: None, 4: 0.5, 5: None}
    found = shared_costs(kinds, costs)
    assert found == pytest.approx({1: 0.2, 2: 0.2, 3: 0.2, 4: 0.5})


@pytest.mark.parametrize(("requests", "total"), [(OLD, 0.5), (NEW, 9.0)])
def test_tasks_that_dask_has_forgotten_and_other_models_begin_anew(requests, total):
    cost = FrameCost()
    cost.update(OLD, 2.0, 0)
    cost.update(OLD, 3.0, 10)
    cost.update(requests, total, 20)
    assert cost.seconds == pytest.approx(0.1)
    cost.update(requests, total + 3.0, 30)
    assert cost.seconds == pytest.approx(0.2)


def test_the_scheduler_adds_up_the_groups_of_a_request_and_notes_reports():
    events = []
    groups = {"first-one": 1.5, "second-one": 0.5, "first-other": 9.0, "one": 7.0}
    scheduler = SimpleNamespace(
        task_groups={
            name: SimpleNamespace(all_durations={"compute": seconds, "transfer": 3.0})
            for name, seconds in groups.items()
        },
        log_event=lambda topic, message: events.append((topic, message)),
    )
    found = report_and_ask([{"stream": "s"}], ["one", "gone"], dask_scheduler=scheduler)
    assert found == {"one": 9.0, "gone": 0.0}
    assert events == [(STREAMS_TOPIC, [{"stream": "s"}])]


@pytest.mark.parametrize(
    ("own", "others", "threads", "starts"),
    [
        ((0, None), [(2, None)], 2, True),
        ((1, None), [(0, None)], 2, False),
        ((1, None), [(0, None)], 3, True),
        ((1, 5.0), [(0, 0.001)], 2, False),
        ((2, 5.0), [(2, 5.0)], 4, False),
        ((1, 5.0), [(2, 5.0)], 4, True),
        ((1, 0.001), [(1, 5.0)], 2, True),
        ((8, 0.001), [(1, 5.0)], 2, False),
        ((1, 5.0), [], 2, True),
    ],
)
def test_a_stream_leaves_a_thread_to_each_of_the_others(own, others, threads, starts):
    assert may_start(ThreadUse(*own), [ThreadUse(*each) for each in others], threads) is starts
