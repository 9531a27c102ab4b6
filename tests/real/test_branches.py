"""The truly wide models, cut along their branches."""

from __future__ import annotations

import numpy as np
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


def test_inspect_knows_the_regions_of_a_wide_model(asset):
    analysis = dx.load(asset("deepcut.onnx")).analyse(
        {"input_1": (2048, 21), "input_2": (2048, 21)}
    )
    assert analysis.parallelism > 7
    assert analysis.critical_seconds == pytest.approx(
        analysis.predicted_seconds / analysis.parallelism
    )
    assert analysis.critical_path[-1].endswith("Sigmoid")
