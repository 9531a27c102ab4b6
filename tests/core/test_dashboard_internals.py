"""Parts of distributed that decide what its dashboard shows, in the installed version."""

from __future__ import annotations

import time
from types import SimpleNamespace

import distributed
import pytest
from dask.task_spec import Task
from distributed import Client
from distributed.http.scheduler.prometheus.core import PrometheusHandler as SchedulerHandler
from distributed.http.worker.prometheus.core import PrometheusHandler as WorkerHandler
from distributed.scheduler import Scheduler, TaskGroup, TaskPrefix, TaskState, WorkerState
from distributed.spans import SpansSchedulerExtension

from dask_onnx.core.dashboard_internals import (
    PagesError,
    add_pages,
    colour_of,
    metrics_of_span,
    rename_group,
    seconds_since_end_of_span,
    worker_metrics_of,
)

FIELDS = {
    TaskGroup: ("add", "dependencies", "name", "prefix", "span_id", "states", "_size"),
    TaskPrefix: ("duration_average", "nbytes_total", "remove_group", "state_counts", "states"),
    TaskState: ("exception_text", "group", "prefix", "waiting_on"),
    WorkerState: ("executing", "last_seen", "metrics", "nthreads", "processing", "status"),
    Client: ("_run", "_run_on_scheduler", "sync"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_the_fields_that_are_read_exist(kind):
    missing = [name for name in FIELDS[kind] if not hasattr(kind, name)]
    annotated = getattr(kind, "__annotations__", {})
    missing = [name for name in missing if name not in annotated]
    assert not missing, f"{kind.__name__} has no {missing} in distributed {distributed.__version__}"


def scheduler_with(*keys):
    """Return what `rename_group` reads of a scheduler that has tasks of one group."""
    prefix = TaskPrefix("sum")
    group = TaskGroup("sum-0a1b", prefix)
    spans = SpansSchedulerExtension(SimpleNamespace(total_nthreads_history=[(0.0, 2)]))
    scheduler = SimpleNamespace(
        task_groups={group.name: group},
        task_prefixes={prefix.name: prefix},
        extensions={"spans": spans},
    )
    tasks = [TaskState(key, Task(key, int), "released", group, validate=False) for key in keys]
    return scheduler, tasks


def test_tasks_move_to_a_group_of_the_new_name_one_by_one():
    scheduler, (one, other) = scheduler_with(("sum-0a1b", 0), ("sum-0a1b", 1))
    old = one.group
    rename_group(scheduler, one, "invoices-sum")
    assert one.prefix.name == "invoices-sum" and one.group.name == "invoices-sum-0a1b"
    assert other.group is old and scheduler.task_groups["sum-0a1b"] is old
    assert (len(old), old.states["released"], old.prefix.states["released"]) == (1, 1, 1)
    rename_group(scheduler, other, "invoices-sum")
    assert other.group is one.group and len(one.group) == 2
    assert set(scheduler.task_groups) == {"invoices-sum-0a1b"}
    assert scheduler.task_prefixes["sum"].groups == set()


def test_a_renamed_group_is_in_the_span_of_the_old_one():
    scheduler, (task,) = scheduler_with("sum-0a1b")
    spans = scheduler.extensions["spans"]
    spans.observe_tasks([task], (), None)
    rename_group(scheduler, task, "invoices-sum")
    assert task.group in spans.spans[task.group.span_id].groups


def test_a_span_has_metrics_of_its_own_and_an_end_once_its_tasks_are_done():
    scheduler, (task,) = scheduler_with("sum-0a1b")
    spans = scheduler.extensions["spans"]
    task.annotations = {"span": {"name": ("outer", "inner"), "ids": ("o", "i")}}
    spans.observe_tasks([task], (), None)
    spans.heartbeat(None, {("execute", "i", "sum", "onnx-rows", "count"): 8})
    assert metrics_of_span(scheduler, "i") == {("execute", "sum", "onnx-rows", "count"): 8}
    assert metrics_of_span(scheduler, "o") == {}
    task.group.stop = time.time() - 5
    spans.spans["i"].enqueued -= 10
    assert 5 <= seconds_since_end_of_span(scheduler, "i") < 60
    task.state = "processing"
    assert seconds_since_end_of_span(scheduler, "i") == 0


def test_a_renamed_group_depends_on_what_the_old_one_did():
    scheduler, (task,) = scheduler_with("sum-0a1b")
    before = TaskGroup("load-1", TaskPrefix("load"))
    task.group.dependencies.add(before)
    rename_group(scheduler, task, "invoices-sum")
    assert task.group.dependencies == {before}


def test_the_colour_of_a_name_is_a_colour_and_stays():
    assert colour_of("det") == colour_of("det")
    assert all(colour_of(name).startswith("#") for name in ("det", "s0.Conv@a"))


def test_a_scheduler_without_a_dashboard_gets_no_pages():
    scheduler = SimpleNamespace(http_application=SimpleNamespace(applications=[]))
    assert add_pages(scheduler, "onnx", {}) is False


def test_a_dashboard_that_is_not_as_it_was_is_an_error_of_its_own():
    with pytest.raises(PagesError, match="http_application"):
        add_pages(SimpleNamespace(), "onnx", {})


def test_what_is_read_of_prometheus_exists():
    assert hasattr(SchedulerHandler, "_collectors") and hasattr(WorkerHandler, "_collector")
    assert worker_metrics_of(SimpleNamespace(cumulative_worker_metrics={"a": 1})) == {"a": 1}
    annotated = Scheduler.__annotations__
    assert {"bandwidth_workers", "cumulative_worker_metrics"} <= set(annotated)
