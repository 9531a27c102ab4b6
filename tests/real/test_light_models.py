"""Light models of the onnx package: well-known architectures with constant weights.

Their graphs are those of real exports; their outputs are meaningless.
"""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import onnx
import pytest

import dask_onnx as dx
from dask_onnx.planning.stage_checks import check_stages

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = sorted(path.stem for path in FOLDER.glob("light_*.onnx"))


def test_there_are_light_models():
    assert len(MODELS) >= 8


@pytest.mark.parametrize("name", MODELS)
def test_known_structures_are_planned_by_every_strategy(name):
    model = dx.load(FOLDER / f"{name}.onnx")
    analysis = model.analysis
    assert analysis.flops > 1e8
    for strategy, n_stages in (("whole", None), ("fused", 4), ("per_node", None)):
        plan = model.plan(strategy, n_stages=n_stages)
        check_stages(plan.stage_graph, model.facts)
        covered = sorted(index for stage in plan.stages for index in stage.nodes)
        assert covered == sorted(model.facts.live)
        if n_stages:
            assert len(plan.stages) == n_stages


@pytest.mark.parametrize("name", MODELS)
def test_lazy_results_of_known_structures_have_the_declared_shape(name):
    model = dx.load(FOLDER / f"{name}.onnx")
    (spec,) = model.inputs
    assert spec.shape is not None
    x = da.zeros((6, *spec.shape[1:]), chunks=(2, *spec.shape[1:]), dtype=spec.dtype)
    y = model.predict(x, plan=model.plan("fused", n_stages=3))
    assert y.shape == (6, *(model.outputs[0].shape or ())[1:])
    assert y.chunks[0] == (2, 2, 2)
