"""Notes of a profile on the scheduler: what is kept of workers' messages, and of ended tasks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dask_onnx.cluster.profile_scheduler_plugin import (
    CANCELLED,
    GROWING,
    TOPIC,
    ProfileSchedulerPlugin,
)

A = "tcp://10.0.0.1:1000"


def scheduler(**tasks):
    forgotten = []
    broker = SimpleNamespace(truncate=forgotten.append)
    return SimpleNamespace(tasks=tasks, _broker=broker, forgotten=forgotten, workers={})


def plugin(**tasks):
    found = ProfileSchedulerPlugin("abc", "Client-1", "span-1")
    found.scheduler = scheduler(**tasks)
    return found


def message(profile="abc", **changes):
    return {"profile": profile, "worker": A, **{name: [] for name in GROWING}, **changes}


def test_messages_of_a_worker_are_added_up_and_not_kept_by_dask():
    own = plugin()
    own.log_event(TOPIC, message(phases=[1], digests=["old"] * 9, peak=1))
    own.log_event(TOPIC, message(phases=[2], digests=["new"], peak=2))
    own.log_event(TOPIC, message("other", phases=[3]))
    own.log_event("all", {"action": "anything"})
    kept = own.messages[A]
    assert (kept["phases"], kept["digests"], kept["peak"]) == ([1, 2], ["new"], 2)
    assert own.scheduler.forgotten == [TOPIC, TOPIC]


def state(**changes):
    facts = {
        "prefix": SimpleNamespace(name="first"),
        "group": SimpleNamespace(span_id=None),
        "annotations": {},
        "dependencies": (),
        "run_spec": None,
        "who_wants": {"Client-1"},
        "waiters": set(),
        "processing_on": SimpleNamespace(address=A),
    }
    return SimpleNamespace(**{**facts, **changes})


@pytest.mark.parametrize(
    ("wants", "waiters", "outcome"),
    [(set(), set(), CANCELLED), ({"Client-1"}, set(), "released"), (set(), {"next"}, "released")],
)
def test_a_task_that_nobody_wants_any_more_is_cancelled_and_not_lost(wants, waiters, outcome):
    task = state()
    own = plugin(k=task)
    own.update_graph(own.scheduler, client="Client-1", tasks=["k"], annotations={})
    own.transition("k", "waiting", "processing")
    task.who_wants, task.waiters = wants, waiters
    own.transition("k", "processing", "released")
    (attempt,) = own.attempts
    assert (attempt.key, attempt.outcome, attempt.worker) == ("k", outcome, A)
