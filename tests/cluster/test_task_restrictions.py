"""Restrictions of tasks to worker groups, over those of the caller; without a cluster."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from dask_onnx.cluster.scheduler_plugin import StagePlugin
from dask_onnx.cluster.task_restrictions import WAITING_RESOURCE, Restrictions, TaskRestrictions
from dask_onnx.core.stage_tasks import Hints

A, B = "tcp://a:1", "tcp://b:1"
GROUP = ("plan", 0)


class FakeScheduler:
    """Two workers, one of which has a GPU, and tasks that `set_restrictions` finds by key."""

    def __init__(self, *states):
        self.workers = {
            A: SimpleNamespace(address=A, name="a0", host="a", resources={}),
            B: SimpleNamespace(address=B, name="b0", host="b", resources={"GPU": 2}),
        }
        self.tasks = {state.key: state for state in states}

    def set_restrictions(self, worker):
        for key, addresses in worker.items():
            self.tasks[key].worker_restrictions = set(addresses) if addresses else None


def task(key="k", state="released", *, workers=None, hosts=None, resources=None, is_loose=False):
    return SimpleNamespace(
        key=key,
        state=state,
        worker_restrictions=workers,
        host_restrictions=hosts,
        resource_restrictions=resources,
        loose_restrictions=is_loose,
    )


CALLERS = [
    {},
    {"workers": {A, B}},
    {"workers": {B}, "is_loose": True},
    {"hosts": {"b"}},
    {"resources": {"GPU": 1}},
    {"workers": {A}, "hosts": {"b"}, "resources": {"GPU": 1}},
]


@pytest.mark.parametrize("given", CALLERS)
def test_the_callers_restrictions_are_restored(given):
    state = task(**given)
    before, scheduler, restrictions = vars(state).copy(), FakeScheduler(state), TaskRestrictions()
    restrictions.restrict(scheduler, state, B, is_loose=False)
    assert state.worker_restrictions == {B} and not state.loose_restrictions
    restrictions.hold(scheduler, state)
    restrictions.restrict(scheduler, state, A, is_loose=True)
    assert state.worker_restrictions == {A} and state.loose_restrictions
    restrictions.restore(scheduler, state)
    assert vars(state) == before and state.key not in restrictions
    restrictions.restore(scheduler, state)
    assert vars(state) == before


@pytest.mark.parametrize("given", CALLERS)
def test_a_held_task_has_no_worker_and_no_invented_address(given):
    state = task(**given)
    scheduler, restrictions = FakeScheduler(state), TaskRestrictions()
    restrictions.hold(scheduler, state)
    assert state.worker_restrictions == given.get("workers") and not state.loose_restrictions
    assert WAITING_RESOURCE in state.resource_restrictions
    assert not Restrictions.of(state).workers(scheduler)


def test_a_restricted_task_reserves_its_resources_and_leaves_other_hosts():
    state = task(hosts={"a"}, resources={"GPU": 1})
    TaskRestrictions().restrict(FakeScheduler(state), state, B, is_loose=False)
    assert state.resource_restrictions == {"GPU": 1} and state.host_restrictions is None


def test_resources_of_a_running_task_stay():
    state = task(state="processing", resources={"GPU": 1})
    TaskRestrictions().hold(FakeScheduler(state), state)
    assert state.resource_restrictions == {"GPU": 1}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"workers": {A}}, {A}),
        ({"workers": {"tcp://gone:1"}}, set()),
        ({"hosts": {"b"}}, {B}),
        ({"hosts": {"b0"}}, {B}),
        ({"workers": {A}, "hosts": {"b"}}, {A, B}),
        ({"resources": {"GPU": 1}}, {B}),
        ({"resources": {"GPU": 3}}, set()),
        ({"workers": {A}, "resources": {"GPU": 1}}, set()),
    ],
)
def test_demanded_workers_are_found(given, expected):
    state = task(**given)
    assert TaskRestrictions().demanded_workers(FakeScheduler(state), state) == expected


def test_a_preference_demands_nothing():
    state = task(workers={A}, is_loose=True)
    restrictions = TaskRestrictions()
    assert restrictions.demanded_workers(FakeScheduler(state), state) is None


def test_only_free_tasks_prefer_workers():
    free, bound = task("free"), task("bound", resources={"GPU": 1})
    scheduler, restrictions = FakeScheduler(free, bound), TaskRestrictions()
    for state in (free, bound):
        restrictions.prefer(scheduler, state, {A})
    assert free.worker_restrictions == {A} and free.loose_restrictions
    assert bound.worker_restrictions is None and bound.resource_restrictions == {"GPU": 1}


@pytest.fixture
def plugin():
    return StagePlugin()


def hint(*, is_loose=False):
    return Hints(worker_group=GROUP, is_loose=is_loose)


def test_tasks_of_a_worker_group_without_a_worker_wait(plugin):
    state = task()
    plugin._restrict(FakeScheduler(state), state, hint())
    assert state.resource_restrictions == {WAITING_RESOURCE: 1.0}


def test_tasks_that_may_run_elsewhere_do_not_wait(plugin):
    state = task()
    scheduler = FakeScheduler(state)
    plugin.worker_groups.places[GROUP] = A
    plugin._restrict(scheduler, state, hint(is_loose=True))
    assert state.worker_restrictions == {A} and state.loose_restrictions
    del plugin.worker_groups.places[GROUP]
    plugin._restrict(scheduler, state, hint(is_loose=True))
    assert vars(state) == vars(task())


def test_a_demand_comes_before_a_worker_group(plugin):
    state = task(workers={B})
    plugin.worker_groups.places[GROUP] = A
    plugin._restrict(FakeScheduler(state), state, hint())
    assert vars(state) == vars(task(workers={B}))


def test_a_worker_group_waits_for_the_workers_that_are_demanded(plugin):
    first, second = task("a", resources={"TPU": 1}), task("b", resources={"TPU": 1})
    scheduler = FakeScheduler(first, second)
    placed = [(first, hint()), (second, hint())]
    plugin._note_demands(scheduler, placed)
    assert plugin.worker_groups.allowed == {GROUP: frozenset()}
    scheduler.workers[A].resources["TPU"] = 1
    plugin.worker_groups.allowed.clear()
    plugin._note_demands(scheduler, placed)
    assert plugin.worker_groups.allowed == {GROUP: {A}}


def test_contradicting_demands_are_logged(plugin, caplog):
    first, second = task("a", workers={A}), task("b", workers={B})
    scheduler = FakeScheduler(first, second)
    with caplog.at_level(logging.WARNING):
        plugin._note_demands(scheduler, [(first, hint()), (second, hint())])
    assert "run apart" in caplog.text and plugin.worker_groups.allowed == {GROUP: {A}}


def test_a_forgotten_task_leaves_nothing_behind(plugin):
    state = task()
    plugin.worker_groups.places[GROUP] = A
    plugin._restrict(FakeScheduler(state), state, hint())
    assert state.key in plugin.restrictions
    plugin.transition(state.key, "memory", "forgotten")
    assert state.key not in plugin.restrictions
