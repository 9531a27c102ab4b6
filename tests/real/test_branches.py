"""Trained models with wide graphs, cut along their branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import dask_onnx as dx


@pytest.mark.parametrize(("name", "wide"), [("deepcut.onnx", 12), ("oskut_deepcut.onnx", 12)])
def test_wide_models_are_balanced_and_bit_equal(name, wide, asset):
    model = dx.load(asset(name))
    rng = np.random.default_rng(0)
    feeds = {spec.name: rng.integers(0, 12, (64, 21)).astype("f4") for spec in model.inputs}
    expected = model.predict(feeds, batch_size=None)
    shapes = {name: array.shape for name, array in feeds.items()}
    region = max(model.analyse(shapes).regions, key=lambda region: sum(region.seconds))
    assert len(region.parts) == wide
    plan = model.plan("branches", n_workers=2, shapes=shapes)
    one, other, join = plan.stages
    assert one.cost.seconds == pytest.approx(other.cost.seconds, rel=0.1)
    assert join.cost.seconds < 0.1 * one.cost.seconds
    np.testing.assert_array_equal(model.predict(feeds, plan=plan, batch_size=None), expected)


def test_inspect_lists_the_regions_of_a_wide_model(asset):
    analysis = dx.load(asset("deepcut.onnx")).analyse(
        {"input_1": (2048, 21), "input_2": (2048, 21)}
    )
    assert analysis.parallelism > 7
    assert analysis.critical_seconds == pytest.approx(
        analysis.predicted_seconds / analysis.parallelism
    )
    assert analysis.critical_path[-1].endswith("Sigmoid")


def test_two_merged_models_are_two_branches(asset):
    model = dx.load(asset("rawi.onnx"))
    x = np.random.default_rng(0).integers(1, 20, (3, 120))
    analysis = model.analyse({"input": x.shape})
    fork, join = analysis.regions
    assert [len(fork.parts), len(join.parts)] == [2, 1]
    assert fork.seconds[0] == pytest.approx(fork.seconds[1], rel=0.01)
    assert analysis.parallelism == pytest.approx(2, rel=0.05)
    plan = model.plan("branches", n_workers=2, shapes={"input": x.shape})
    one, other, last = plan.stages
    assert [len(one.nodes), len(other.nodes), len(last.nodes)] == [29, 28, 1]
    assert sum(edge.bytes for edge in plan.stage_graph.edges) == 3 * 120 * (1 + 8)
    expected = model(x, batch_size=None)
    np.testing.assert_array_equal(model.predict(x, plan=plan, batch_size=None), expected)


LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


@pytest.mark.parametrize(
    ("name", "modules"), [("v1", [4] * 9), ("v2", [4, 4, 3, 4, 4, 4, 4, 3, 4, 4])]
)
def test_inception_is_a_row_of_modules(name, modules):
    analysis = dx.load(LIGHT / f"light_inception_{name}.onnx").analysis
    parts = [len(region.parts) for region in analysis.regions]
    assert parts[::2] == [1] * (len(modules) + 1)
    assert parts[1::2] == modules
    live = [i for region in analysis.regions for part in region.parts for i in part]
    assert len(live) == len(set(live))
    assert 1.3 < analysis.parallelism < 1.6
    # A cut between two modules sends one value; a cut inside a module sends one for each branch.
    assert min(cut.values for cut in analysis.cuts) == 1
    assert max(cut.values for cut in analysis.cuts) >= 3
