"""Plans that may lose precision on slow links."""

from __future__ import annotations

import numpy as np
import pytest
from builders import dense_model

import dask_onnx as dx

X = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


@pytest.fixture
def plan():
    return dx.load(dense_model(hidden=256)).plan("per_node")


@pytest.mark.parametrize("way", ["float16", "int8"])
def test_the_drift_is_measured_and_explained(plan, way):
    lossy = plan.with_loss(way, X, budget=0.05)
    assert 0 < lossy.drift.relative["y"] < 0.05
    assert lossy.drift.absolute["y"] > 0
    assert f"{way} between stages moved y by" in lossy.explain()
    assert plan.drift is None


def test_a_drift_beyond_the_budget_is_refused_with_the_numbers(plan):
    with pytest.raises(dx.PlanError, match=r"int8 between stages moved y by .* budget is 0\.001%"):
        plan.with_loss("int8", X, budget=1e-5)


def test_results_within_a_host_are_exact(plan):
    lossy = plan.with_loss("int8", X, budget=0.05)
    np.testing.assert_array_equal(lossy.predict(X), plan.predict(X))


def test_a_plan_of_one_stage_has_nothing_to_lose():
    model = dx.load(dense_model())
    with pytest.raises(dx.PlanError) as caught:
        model.plan("whole").with_loss("int8", X, budget=1)
    assert caught.value.numbers == {"stages": 1}


def test_an_unknown_way_is_refused(plan):
    with pytest.raises(dx.PlanError) as caught:
        plan.with_loss("int4", X, budget=1)
    assert caught.value.option == "way"


def test_the_aim_sets_the_threads_of_a_task():
    model = dx.load(dense_model())
    assert model.plan().recipe.session.intra_op_num_threads is None
    assert model.plan(aim="latency").recipe.session.intra_op_num_threads == 0
    by_hand = dx.SessionSpec(intra_op_num_threads=3)
    assert model.plan(aim="latency", session=by_hand).recipe.session.intra_op_num_threads == 3
    assert "(latency)" in model.plan(aim="latency").explain()
    assert "(throughput)" in model.plan(aim="throughput").explain()
    with pytest.raises(dx.PlanError) as caught:
        model.plan(aim="speed")
    assert caught.value.option == "aim"
