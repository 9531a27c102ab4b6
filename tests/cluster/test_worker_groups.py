"""Assignment of worker groups to workers that join and are lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.cluster.worker_groups import TAKEOVER_SECONDS, WorkerGroups

A, B, C = "a", "b", "c"
EQUAL = {A: 100, B: 100, C: 100}


def assigned(*sizes, limits=None, now=0.0):
    worker_groups = WorkerGroups()
    worker_groups.add(
        {("p", i): size for i, size in enumerate(sizes)}, limits or {A: 100, B: 100}, now
    )
    return worker_groups


def by_worker(worker_groups):
    found = {}
    for (_, worker_group), place in worker_groups.places.items():
        found.setdefault(place, set()).add(worker_group)
    return found


def test_worker_groups_are_spread():
    assert by_worker(assigned(10, 10)) in ({A: {0}, B: {1}}, {A: {1}, B: {0}})


def test_workers_get_worker_groups_in_proportion_to_memory():
    worker_groups = assigned(10, 10, 10, limits={A: 200, B: 100})
    assert {place: len(found) for place, found in by_worker(worker_groups).items()} == {A: 2, B: 1}


def test_a_new_worker_takes_the_worker_groups_of_the_lost_one():
    worker_groups = assigned(10, 10, 10, 10)
    had = by_worker(worker_groups)[A]
    assert worker_groups.lost(A, 1.0) == {("p", i) for i in had}
    assert worker_groups.joined(C, {B: 100, C: 100}) == {("p", i) for i in had}
    assert by_worker(worker_groups)[C] == had and not worker_groups.waiting


def test_each_new_worker_takes_the_worker_groups_of_one_lost_worker():
    worker_groups = assigned(10, 10, 10, limits=EQUAL)
    for worker in (A, B, C):
        worker_groups.lost(worker, 1.0)
    assert len(worker_groups.waiting) == 3
    limits = {}
    for number, worker in enumerate(("d", "e", "f"), 1):
        limits[worker] = 100
        assert len(worker_groups.joined(worker, limits)) == 1
        assert len(worker_groups.waiting) == 3 - number
    assert sorted(map(len, by_worker(worker_groups).values())) == [1, 1, 1]


def test_a_worker_that_is_too_small_takes_no_waiting_worker_groups():
    worker_groups = assigned(90, 90)
    worker_groups.lost(A, 1.0)
    assert worker_groups.joined("small", {B: 100, "small": 50}) == set()
    assert worker_groups.joined("large", {B: 100, "small": 50, "large": 200}) == {
        *worker_groups.places
    } - {worker_group for worker_group, place in worker_groups.places.items() if place == B}


def test_other_workers_take_over_only_after_the_takeover_time():
    worker_groups = assigned(10, 10)
    worker_groups.lost(A, 1.0)
    assert worker_groups.overdue({B: 100}, TAKEOVER_SECONDS) == set()
    assert len(worker_groups.overdue({B: 100}, 1.0 + TAKEOVER_SECONDS)) == 1
    assert by_worker(worker_groups) == {B: {0, 1}}


def test_worker_groups_that_were_lost_later_wait_longer():
    worker_groups = assigned(10, 10, 10, limits=EQUAL)
    worker_groups.lost(A, 0.0)
    worker_groups.lost(B, 5.0)
    assert len(worker_groups.overdue({C: 100}, TAKEOVER_SECONDS)) == 1
    assert len(worker_groups.waiting) == 1


def test_worker_groups_of_a_cluster_without_workers_wait_one_by_one():
    worker_groups = WorkerGroups()
    worker_groups.add({("p", 0): 10, ("p", 1): 10}, {}, 0.0)
    assert len(worker_groups.waiting) == 2
    assert len(worker_groups.joined(A, {A: 100})) == 1
    assert len(worker_groups.joined(B, {A: 100, B: 100})) == 1
    assert sorted(map(len, by_worker(worker_groups).values())) == [1, 1]


def test_a_worker_group_that_shares_a_worker_moves_to_a_new_one():
    worker_groups = assigned(10, 10, limits={A: 100})
    assert by_worker(worker_groups) == {A: {0, 1}}
    assert len(worker_groups.joined(B, {A: 100, B: 100})) == 1


def test_only_workers_that_the_caller_allows_are_taken():
    worker_groups = WorkerGroups(allowed={("p", 0): frozenset({B})})
    worker_groups.add({("p", 0): 10, ("p", 1): 10}, {A: 100, B: 100}, 0.0)
    assert worker_groups.places == {("p", 0): B, ("p", 1): A}
    worker_groups.lost(B, 1.0)
    assert worker_groups.joined(C, {A: 100, C: 100}) == set()
    assert worker_groups.overdue({A: 100, C: 100}, 100.0) == set()
    assert worker_groups.joined(B, {A: 100, B: 100, C: 100}) == {("p", 0)}


def test_plans_without_tasks_are_forgotten():
    worker_groups = assigned(10, 10)
    worker_groups.add({("q", 0): 10}, {A: 100, B: 100}, 0.0)
    worker_groups.forget({"q"})
    assert set(worker_groups.places) == set(worker_groups.sizes) == {("q", 0)}


EVENTS = st.lists(st.tuples(st.sampled_from(["join", "lose", "later"]), st.integers(0, 4)))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), EVENTS)
def test_each_worker_group_has_a_live_worker_or_waits(sizes, events):
    limits, now = {"w0": 100, "w1": 100}, 0.0
    worker_groups = WorkerGroups()
    every = {("p", i): size for i, size in enumerate(sizes)}
    worker_groups.add(every, limits, now)
    for number, (event, which) in enumerate(events):
        now += 1.0
        if event == "join":
            limits[f"new{number}"] = 100
            worker_groups.joined(f"new{number}", limits)
        elif event == "lose" and limits:
            worker = sorted(limits)[which % len(limits)]
            del limits[worker]
            worker_groups.lost(worker, now)
        elif event == "later":
            now += TAKEOVER_SECONDS
            worker_groups.overdue(limits, now)
            assert not worker_groups.waiting or not limits
        assert set(worker_groups.places) | set(worker_groups.waiting) == set(every)
        assert not set(worker_groups.places) & set(worker_groups.waiting)
        assert set(worker_groups.places.values()) <= set(limits)
