"""Shares of streams by weight and priority, and micro-batches over streams: pure logic."""

from __future__ import annotations

from collections import Counter

import pytest

from dask_onnx.streams.fair_share import FairShare
from dask_onnx.streams.micro_batches import BatchPlan, Head, plan_batch


def share_of(weights, priorities=None):
    share = FairShare()
    for stream, weight in weights.items():
        share.add(stream, weight, (priorities or {}).get(stream, 0))
    return share


def test_starts_follow_the_weights():
    share = share_of({1: 1.0, 2: 3.0, 3: 0.5})
    counts = Counter(share.choose([1, 2, 3]) for _ in range(900))
    assert [counts[stream] for stream in (1, 2, 3)] == pytest.approx([200, 600, 100], abs=3)


def test_streams_whose_frames_cost_more_start_fewer():
    share = share_of({1: 1.0, 2: 1.0, 3: 1.0})
    for _ in range(50):
        share.choose([1, 2, 3])
    share.set_costs({1: 0.1, 2: 0.4})
    counts = Counter(share.choose([1, 2]) for _ in range(500))
    assert [counts[1], counts[2]] == pytest.approx([400, 100], abs=3)


def test_a_larger_priority_comes_first_whatever_the_weights_are():
    share = share_of({1: 100.0, 2: 1.0}, {2: 5})
    assert [share.choose([1, 2]) for _ in range(5)] == [2] * 5
    assert share.choose([1]) == 1


def test_a_stream_that_was_idle_does_not_catch_up():
    share = share_of({1: 1.0, 2: 1.0})
    for _ in range(100):
        share.choose([1])
    counts = Counter(share.choose([1, 2]) for _ in range(20))
    assert counts[1] == pytest.approx(10, abs=1)


def test_a_stream_that_joins_late_starts_where_the_others_are():
    share = share_of({1: 1.0})
    for _ in range(100):
        share.choose([1])
    share.add(2, 1.0, 0)
    assert Counter(share.choose([1, 2]) for _ in range(20))[1] == pytest.approx(10, abs=1)
    share.remove(1)
    assert share.choose([2]) == 2 and share.choose([]) is None


def head(stream, key="k", size=4, count=1, due=10.0):
    return Head(stream, key, size, count, due)


def test_frames_wait_until_a_micro_batch_is_full_over_all_streams():
    assert plan_batch([head(1), head(2)], now=0.0) == 10.0
    full = plan_batch([head(1, count=3), head(2)], now=0.0)
    assert full == BatchPlan((1, 2), {1: 4, 2: 4})


def test_a_micro_batch_that_is_not_full_starts_when_its_oldest_frame_is_due():
    assert plan_batch([head(1, due=5.0), head(2, due=1.0)], now=0.0) == 1.0
    assert plan_batch([head(1, due=5.0), head(2, due=1.0)], now=1.0) == BatchPlan(
        (1, 2), {1: 2, 2: 2}
    )


def test_streams_of_other_models_do_not_share_a_run_or_wait_for_each_other():
    plan = plan_batch([head(1, count=3), head(2, key="other"), head(3, key=None)], now=0.0)
    assert plan == BatchPlan((3,), {3: 1})
    assert plan_batch([], now=0.0) is None
