"""Parts of dask and distributed outside their documented interfaces, in the installed version.

A failure here names the part that a release of Dask has changed or removed.
"""

from __future__ import annotations

import importlib
import inspect

import dask
import distributed
import numpy as np
import pytest
from dask.task_spec import Task
from distributed.scheduler import Scheduler, TaskPrefix, TaskState, WorkerState

from dask_onnx.core import dask_internals
from dask_onnx.core.dask_internals import (
    add_dependency,
    expect_duration,
    remove_dependency,
    serialize_numpy_ndarray,
    set_other_restrictions,
    set_priority,
    set_retries,
)

PARTS = {
    "dask.layers:ArraySliceDep": "blocks of rasters that are written",
    "dask._task_spec:Task.block_fusion": "stages that stay apart in array graphs (StageTask)",
    "distributed.protocol.numpy:serialize_numpy_ndarray": "transfer of arrays",
    "distributed.utils:offload": "reading weights off a worker's event loop",
    "distributed.worker:thread_state": "telling whether a thread runs a task",
    "distributed.threadpoolexecutor:thread_state": "telling whether a task has left its pool",
    "distributed.scheduler:Scheduler.bulk_schedule_unrunnable_after_adding_worker": (
        "starting tasks whose restrictions have changed"
    ),
    "distributed.broker:Broker.truncate": "forgetting the messages of profiles",
    "distributed.scheduler:Scheduler.transitions": "starting tasks whose restrictions have changed",
    "distributed.scheduler:Scheduler.set_restrictions": "worker groups",
    "distributed.scheduler:Scheduler.run_function": "questions of tasks to the scheduler",
    "distributed.client:Client._graph_to_futures": "tasks of jobs that run in order",
    "dask._task_spec:convert_legacy_graph": "chunks that are kept and taken up again",
    "distributed.scheduler:Scheduler.transition": "tasks that have lost all workers",
    "distributed.scheduler:Scheduler.log_event": "warnings of the scheduler for its clients",
    "dask._expr:LLGExpr": "tasks of jobs that run in order, and of prepared requests",
    "distributed.spans:SpanMetadata": "tasks of jobs that run in order",
    "distributed.scheduler:TaskState.add_dependency": "input that waits for its micro-batch",
    "distributed.scheduler:Scheduler.check_worker_ttl": "workers that hang",
    "distributed.worker:Worker.run": "questions of tasks to other workers",
}
"""Places of the parts, and what they are used for."""
TASK_FIELDS = (
    "dependencies",
    "dependents",
    "host_restrictions",
    "loose_restrictions",
    "prefix",
    "priority",
    "resource_restrictions",
    "retries",
    "run_spec",
    "worker_restrictions",
)
WORKER_FIELDS = ("address", "host", "memory_limit", "name", "resources")
VERSIONS = f"dask {dask.__version__}, distributed {distributed.__version__}"


@pytest.mark.parametrize("place", PARTS)
def test_undocumented_parts_exist(place):
    module, _, path = place.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            pytest.fail(f"{place} is missing in {VERSIONS}; used for {PARTS[place]}")
        found = getattr(found, name)


@pytest.mark.parametrize(
    ("kind", "fields"), [(TaskState, TASK_FIELDS), (WorkerState, WORKER_FIELDS)]
)
def test_states_have_the_fields_that_are_used(kind, fields):
    missing = [name for name in fields if not hasattr(kind, name)]
    assert not missing, f"{kind.__name__} has no {missing} in {VERSIONS}"


def test_restrictions_are_set_by_key():
    parameters = inspect.signature(Scheduler.set_restrictions).parameters
    assert list(parameters) == ["self", "worker"], VERSIONS


def test_all_undocumented_parts_are_listed():
    assert set(dask_internals.__all__) <= set(vars(dask_internals))


def task_state(key="k"):
    prefix = TaskPrefix(key)
    group = distributed.scheduler.TaskGroup(key, prefix)
    return TaskState(key, Task(key, int), "released", group, validate=False)


def test_a_known_duration_is_not_replaced():
    state = task_state("a-1")
    expect_duration(state, 0.0)
    assert state.prefix.duration_average < 0
    expect_duration(state, 7.0)
    assert state.prefix.duration_average == 7.0
    expect_duration(state, 9.0)
    assert state.prefix.duration_average == 7.0


def test_retries_only_grow():
    state = task_state()
    set_retries(state, 3)
    set_retries(state, 1)
    assert state.retries == 3


def test_a_priority_is_replaced():
    state = task_state()
    set_priority(state, (0, 1, 2))
    assert state.priority == (0, 1, 2)


def test_a_dependency_is_added_and_removed():
    state, other = task_state("a"), task_state("b")
    add_dependency(state, other)
    assert state.dependencies == {other} and other.dependents == {state}
    remove_dependency(state, other)
    assert not state.dependencies and not other.dependents


def test_empty_restrictions_are_none():
    state = task_state()
    set_other_restrictions(state, hosts=["h"], resources={"GPU": 1}, is_loose=True)
    assert state.host_restrictions == {"h"} and state.resource_restrictions == {"GPU": 1}
    assert state.loose_restrictions
    set_other_restrictions(state, hosts=(), resources={}, is_loose=False)
    assert state.host_restrictions is None and state.resource_restrictions is None
    assert not state.loose_restrictions


def test_arrays_are_serialized_with_a_context():
    header, frames = serialize_numpy_ndarray(np.arange(4), context={"compression": None})
    assert header["shape"] == (4,) and len(frames) == 1


def test_this_thread_runs_no_task():
    assert not dask_internals.is_running_task()
