"""Names of stages and models in metrics: no model is given the work of another."""

from __future__ import annotations

import time
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
from builders import layers_model
from dask.task_spec import Task
from distributed.scheduler import TaskGroup, TaskPrefix, TaskState
from distributed.spans import SpansSchedulerExtension

import dask_onnx as dx
from dask_onnx.cluster import stage_names
from dask_onnx.cluster.scheduler_plugin import PLUGIN_NAME
from dask_onnx.cluster.stage_names import SEVERAL_MODELS, ShownStage, StageNames
from dask_onnx.core.stage_tasks import Hints


class NotedTasks:
    """Tasks of a stand-in for a scheduler, whose stages are noted."""

    def __init__(self):
        self.names = StageNames()
        self.scheduler = SimpleNamespace(task_groups={}, task_prefixes={}, extensions={})
        self.scheduler.total_nthreads_history = [(0.0, 2)]
        self.scheduler.cumulative_worker_metrics = {}
        self.spans = SpansSchedulerExtension(self.scheduler)
        self.scheduler.extensions["spans"] = self.spans

    def submit(self, prefix, token, model, stage=""):
        """Submit a task of a stage, and return it."""
        scheduler = self.scheduler
        known = scheduler.task_prefixes.setdefault(prefix, TaskPrefix(prefix))
        group = TaskGroup(f"{prefix}-{token}", known)
        scheduler.task_groups[group.name] = group
        task = TaskState((group.name, 0), Task(group.name, int), "released", group, validate=False)
        self.spans.observe_tasks([task], (), None)
        self.names.note(scheduler, task, Hints(stage=stage, model=model))
        task.state = "processing"
        return task

    def run(self, task, rows, *, is_told=True):
        """Run a task and, unless the worker has not sent its next heartbeat, count its rows."""
        task.state, task.group.stop = "memory", 1.0
        if is_told:
            self.tell(task, rows)

    def tell(self, task, rows):
        prefix = task.key[0].partition("-")[0]
        span, metrics = task.group.span_id, self.scheduler.cumulative_worker_metrics
        self.spans.heartbeat(None, {("execute", span, prefix, "onnx-rows", "count"): rows})
        key = ("execute", prefix, "onnx-rows", "count")
        metrics[key] = metrics.get(key, 0) + rows

    def rows(self):
        found: dict[tuple[str, str], float] = {}
        for key, value in self.names.metrics(self.scheduler):
            assert key[0] == "execute" and key[2:] == ("onnx-rows", "count")
            found[key[1]] = found.get(key[1], 0) + value
        return found


@pytest.fixture
def noted():
    return NotedTasks()


def test_models_whose_stages_have_one_name_are_counted_apart(noted):
    for number, (model, rows) in enumerate([("a", 5), ("b", 7), ("a", 1)]):
        noted.run(noted.submit("conv", number, model), rows)
    assert noted.rows() == {("conv", "a"): 6, ("conv", "b"): 7}
    assert noted.names.models == {"conv": SEVERAL_MODELS}
    assert noted.names.of_group("conv-1") == ("conv", "b")
    assert noted.names.of_group("load-1") is None


def test_models_that_run_at_the_same_time_share_a_series_without_a_model(noted):
    tasks = [noted.submit("conv", number, model) for number, model in enumerate("ab")]
    for task in tasks:
        noted.run(task, 4)
    assert noted.rows() == {("conv", ""): 8}


def test_models_that_are_fused_with_tasks_of_one_name_keep_their_own(noted):
    for number, model in enumerate("ab"):
        task = noted.submit("sum", number, model, stage=f"{model}-array")
        assert task.prefix.name == f"{model}-array-sum"
        noted.run(task, 4)
    assert noted.rows() == {("a-array-sum", "a"): 4, ("b-array-sum", "b"): 4}
    assert noted.names.models == {"a-array-sum": "a", "b-array-sum": "b"}


def test_a_label_that_is_part_of_a_word_does_not_hide_what_a_task_is(noted):
    assert noted.submit("mean", 0, "m", stage="a").prefix.name == "a-mean"
    assert noted.submit("a", 1, "m", stage="a").prefix.name == "a"


def test_meters_of_spans_that_are_over_are_kept_as_sums(noted, monkeypatch):
    monkeypatch.setattr(stage_names, "_LATE_SECONDS", -1.0)
    names = noted.names
    names._most_spans = 2
    monkeypatch.setattr(stage_names, "_MOST_SPANS", 2)
    for number in range(9):
        noted.run(noted.submit("conv", number, "ab"[number % 2]), 1)
        assert len(names._spans) <= 4
    assert noted.rows() == {("conv", "a"): 5, ("conv", "b"): 4}


def test_what_arrives_after_the_end_of_a_span_is_not_lost_nor_counted_twice(noted, monkeypatch):
    monkeypatch.setattr(stage_names, "_LATE_SECONDS", -1.0)
    late = noted.submit("conv", 0, "a")
    noted.run(late, 2)
    noted.names._most_spans = 0
    noted.run(noted.submit("relu", 1, "a"), 3)
    noted.tell(late, 4)
    expected = {("conv", "a"): 2, ("conv", ""): 4, ("relu", "a"): 3}
    assert noted.rows() == expected
    # A task that is repeated is noted again, in its old span.
    noted.names.note(noted.scheduler, late, Hints(model="a"))
    assert noted.rows() == expected


def test_groups_that_are_gone_are_forgotten_and_their_stages_are_not(noted, monkeypatch):
    monkeypatch.setattr(stage_names, "_MOST_NAMES", 3)
    noted.names._most_groups = 3
    for number in range(20):
        noted.run(noted.submit("conv", number, "a"), 1)
        del noted.scheduler.task_groups[f"conv-{number}"]
    assert len(noted.names._groups) <= 4
    assert list(noted.names.stages) == [ShownStage("conv", "a")]


def test_tasks_that_ran_before_they_were_noted_have_no_model(noted):
    noted.scheduler.cumulative_worker_metrics["execute", "conv", "onnx-rows", "count"] = 3
    noted.run(noted.submit("conv", 0, "a"), 2)
    assert noted.rows() == {("conv", "a"): 2, ("conv", ""): 3}


@pytest.mark.cluster
def test_a_cluster_counts_the_rows_of_models_whose_nodes_have_the_same_names(client):
    x = da.from_array(np.ones((12, 8), np.float32), chunks=(4, 8))
    for name, times in (("older", 2), ("newer", 1)):
        model = dx.load(layers_model([8] * 4), name=name)
        for number in range(times):
            model.plan(strategy="fused", n_stages=2).predict(x + number).compute()

    def counted(dask_scheduler):
        names = dask_scheduler.plugins[PLUGIN_NAME].names
        found: dict[tuple[str, str], set[float]] = {}
        for key, value in names.metrics(dask_scheduler):
            if key[0] == "execute" and key[2:] == ("onnx-rows", "count"):
                found.setdefault(tuple(key[1]), set()).add(value)
        return {key: sum(values) for key, values in found.items() if key[1] in ("older", "newer")}

    until = time.monotonic() + 30
    while sum((found := client.run_on_scheduler(counted)).values()) < 72:
        assert time.monotonic() < until, found
    by_model = {
        name: {v for (_, m), v in found.items() if m == name} for name in ("older", "newer")
    }
    assert by_model == {"older": {24.0}, "newer": {12.0}}
