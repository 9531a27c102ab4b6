"""Lanes of stages: which worker has which, whatever becomes of workers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.cluster.worker_groups import TAKEOVER_SECONDS, Lanes

A, B, C = "a", "b", "c"
EQUAL = {A: 100, B: 100, C: 100}


def lanes_of(*sizes, limits=None, now=0.0):
    lanes = Lanes()
    lanes.add({("p", i): size for i, size in enumerate(sizes)}, limits or {A: 100, B: 100}, now)
    return lanes


def by_worker(lanes):
    found = {}
    for (_, lane), place in lanes.places.items():
        found.setdefault(place, set()).add(lane)
    return found


def test_lanes_are_spread():
    assert by_worker(lanes_of(10, 10)) in ({A: {0}, B: {1}}, {A: {1}, B: {0}})


def test_workers_get_their_share_by_memory():
    lanes = lanes_of(10, 10, 10, limits={A: 200, B: 100})
    assert {place: len(found) for place, found in by_worker(lanes).items()} == {A: 2, B: 1}


def test_the_one_that_comes_back_takes_what_the_lost_one_had():
    lanes = lanes_of(10, 10, 10, 10)
    had = by_worker(lanes)[A]
    assert lanes.lost(A, 1.0) == {("p", i) for i in had}
    assert lanes.joined(C, {B: 100, C: 100}) == {("p", i) for i in had}
    assert by_worker(lanes)[C] == had and not lanes.waiting


def test_of_several_that_are_lost_each_new_one_takes_the_lanes_of_one():
    lanes = lanes_of(10, 10, 10, limits=EQUAL)
    for worker in (A, B, C):
        lanes.lost(worker, 1.0)
    assert len(lanes.waiting) == 3
    limits = {}
    for number, worker in enumerate(("d", "e", "f"), 1):
        limits[worker] = 100
        assert len(lanes.joined(worker, limits)) == 1
        assert len(lanes.waiting) == 3 - number
    assert sorted(map(len, by_worker(lanes).values())) == [1, 1, 1]


def test_one_that_is_too_small_takes_nothing_that_waits():
    lanes = lanes_of(90, 90)
    lanes.lost(A, 1.0)
    assert lanes.joined("small", {B: 100, "small": 50}) == set()
    assert lanes.joined("large", {B: 100, "small": 50, "large": 200}) == {*lanes.places} - {
        lane for lane, place in lanes.places.items() if place == B
    }


def test_those_that_are_there_take_over_when_nobody_comes_and_no_sooner():
    lanes = lanes_of(10, 10)
    lanes.lost(A, 1.0)
    assert lanes.overdue({B: 100}, TAKEOVER_SECONDS) == set()
    assert len(lanes.overdue({B: 100}, 1.0 + TAKEOVER_SECONDS)) == 1
    assert by_worker(lanes) == {B: {0, 1}}


def test_what_was_lost_later_waits_longer():
    lanes = lanes_of(10, 10, 10, limits=EQUAL)
    lanes.lost(A, 0.0)
    lanes.lost(B, 5.0)
    assert len(lanes.overdue({C: 100}, TAKEOVER_SECONDS)) == 1
    assert len(lanes.waiting) == 1


def test_lanes_of_a_cluster_without_workers_wait_one_by_one():
    lanes = Lanes()
    lanes.add({("p", 0): 10, ("p", 1): 10}, {}, 0.0)
    assert len(lanes.waiting) == 2
    assert len(lanes.joined(A, {A: 100})) == 1
    assert len(lanes.joined(B, {A: 100, B: 100})) == 1
    assert sorted(map(len, by_worker(lanes).values())) == [1, 1]


def test_what_doubled_up_moves_on():
    lanes = lanes_of(10, 10, limits={A: 100})
    assert by_worker(lanes) == {A: {0, 1}}
    assert len(lanes.joined(B, {A: 100, B: 100})) == 1


def test_only_workers_that_the_caller_allows_are_taken():
    lanes = Lanes(allowed={("p", 0): frozenset({B})})
    lanes.add({("p", 0): 10, ("p", 1): 10}, {A: 100, B: 100}, 0.0)
    assert lanes.places == {("p", 0): B, ("p", 1): A}
    lanes.lost(B, 1.0)
    assert lanes.joined(C, {A: 100, C: 100}) == set()
    assert lanes.overdue({A: 100, C: 100}, 100.0) == set()
    assert lanes.joined(B, {A: 100, B: 100, C: 100}) == {("p", 0)}


def test_plans_that_are_gone_are_forgotten():
    lanes = lanes_of(10, 10)
    lanes.add({("q", 0): 10}, {A: 100, B: 100}, 0.0)
    lanes.forget({"q"})
    assert set(lanes.places) == set(lanes.sizes) == {("q", 0)}


EVENTS = st.lists(st.tuples(st.sampled_from(["join", "lose", "later"]), st.integers(0, 4)))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), EVENTS)
def test_each_lane_has_a_living_worker_or_waits(sizes, events):
    limits, now = {"w0": 100, "w1": 100}, 0.0
    lanes = Lanes()
    every = {("p", i): size for i, size in enumerate(sizes)}
    lanes.add(every, limits, now)
    for number, (event, which) in enumerate(events):
        now += 1.0
        if event == "join":
            limits[f"new{number}"] = 100
            lanes.joined(f"new{number}", limits)
        elif event == "lose" and limits:
            worker = sorted(limits)[which % len(limits)]
            del limits[worker]
            lanes.lost(worker, now)
        elif event == "later":
            now += TAKEOVER_SECONDS
            lanes.overdue(limits, now)
            assert not lanes.waiting or not limits
        assert set(lanes.places) | set(lanes.waiting) == set(every)
        assert not set(lanes.places) & set(lanes.waiting)
        assert set(lanes.places.values()) <= set(limits)
