"""Hints of tasks that the scheduler applies: expected durations and priorities."""

from __future__ import annotations

from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
from builders import make_model, node, value, weights
from distributed.diagnostics.plugin import SchedulerPlugin

import dask_onnx as dx
from dask_onnx.cluster.scheduler_plugin import _rank
from dask_onnx.core.stage_tasks import Hints

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((96, 32), dtype=np.float32)


def uneven():
    """Return a model with a short branch, first in the file, and a long one."""
    return make_model(
        [
            node("Relu", "x", "s", "short"),
            node("MatMul", "x A", "l", "long"),
            node("MatMul", "l B", "m", "longer"),
            node("Add", "s m", "y", "join"),
        ],
        [value("x", ["N", 32])],
        [value("y", ["N", 32])],
        {"A": weights(32, 4096), "B": weights(4096, 32)},
    )


class Notes(SchedulerPlugin):
    """Records the priority and the expected duration of each task of a graph."""

    def __init__(self):
        self.seen = {}

    def update_graph(self, scheduler, *, tasks, **_):
        for key in tasks:
            state = scheduler.tasks[key]
            self.seen[str(key)] = (state.priority, state.prefix.duration_average)


@pytest.fixture
def notes(own_client):
    own_client.register_plugin(Notes(), name="notes")
    return lambda: own_client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.plugins["notes"].seen
    )


def by_label(seen, label):
    return {key: found for key, found in seen.items() if key.startswith(f"('{label}-")}


def test_the_longest_path_comes_first_and_older_chunks_before_it(own_client, notes):
    model = dx.load(uneven())
    plan = model.plan("per_node", shapes={"x": (16, 32)})
    lazy = model.predict(da.from_array(ROWS, chunks=(16, -1)), plan=plan)
    np.testing.assert_allclose(lazy.compute(), model(ROWS, batch_size=None), rtol=1e-5, atol=1e-4)
    seen = notes()
    places = {
        label: [priority for priority, _ in by_label(seen, label).values()]
        for label in ("short", "long", "longer", "join")
    }
    assert [len(each) for each in places.values()] == [6] * 4
    for chunk in range(6):
        ranks = [sorted(places[label])[chunk] for label in ("long", "longer", "short", "join")]
        assert ranks == sorted(ranks)
    assert max(min(places[label]) for label in places) < max(
        sorted(places[label])[1] for label in places
    )


@pytest.fixture
def own_store(tmp_path):
    """Store of this test alone, since measured times change other tests' plans."""
    with dask.config.set({"onnx.store.directory": str(tmp_path)}):
        yield


def test_stages_are_expected_to_take_what_was_predicted(own_client, notes, own_store):
    model = dx.load(uneven())
    plan = model.plan("per_node", measure=ROWS[:16])
    model.predict(da.from_array(ROWS, chunks=(32, -1)), plan=plan).compute()
    seconds = {stage.label: stage.cost.seconds for stage in plan.stages}
    for label in seconds:
        for _, expected in by_label(notes(), label).values():
            # A chunk has twice the rows that the plan is for.
            assert expected == pytest.approx(2 * seconds[label])


def test_without_a_measurement_no_duration_is_expected(own_client, notes, own_store):
    model = dx.load(uneven())
    plan = model.plan("per_node", shapes={"x": (16, 32)})
    model.predict(da.from_array(ROWS, chunks=(32, -1)), plan=plan).compute()
    assert {expected for _, expected in by_label(notes(), "longer").values()} == {-1}


def test_only_stages_of_one_micro_batch_exchange_priorities():
    def state(key, place):
        return SimpleNamespace(key=key, priority=(0, 1, place), state="released")

    first = [state(("a", 0), 1), state(("b", 0), 2)]
    later = [state(("a", 1), 3), state(("b", 0, 1), 4)]
    other = state(("a", 0), 5)
    lone = state("a", 6)
    hints = [Hints(request="r", seconds_left=left) for left in (1.0, 2.0)]
    found = [(s, [h]) for group in (first, later) for s, h in zip(group, hints, strict=True)]
    _rank(
        [
            *found,
            (other, [Hints(request="q", seconds_left=9.0)]),
            (lone, [Hints(request="r", seconds_left=9.0)]),
        ]
    )
    places = [s.priority[-1] for s in (*first, *later, other, lone)]
    assert places == [2, 1, 4, 3, 5, 6]
