"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dask_onnx as dx

NAMES = [
    "Boxes",
    "DaskOnnxError",
    "Edge",
    "InputError",
    "Model",
    "ModelError",
    "Placement",
    "Plan",
    "PlanError",
    "SessionSpec",
    "Sharded",
    "Stage",
    "StageError",
    "StageGraph",
    "StoreError",
    "Strategy",
    "TensorSpec",
    "TextModel",
    "at_values",
    "configure",
    "detect_sliced",
    "from_annotations",
    "load",
    "predict_tiled",
    "tiling_drift",
    "verify_axes",
]


def test_the_public_names_are_these():
    assert dx.__all__ == NAMES
    assert set(NAMES) <= set(dir(dx))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(dx, name).__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        dx.laod  # noqa: B018


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"onnxruntime", "sympy", "onnx", "numpy", "distributed"}
    assert not loaded_after("import dask_onnx") & heavy


def test_loading_imports_no_onnxruntime(asset):
    code = f"import dask_onnx as dx; dx.load({asset('magika.onnx')!r}).analysis"
    assert not loaded_after(code) & {"onnxruntime", "sympy"}


def test_planning_and_lazy_prediction_run_no_session(asset):
    # Planning asks onnxruntime for each kind of node whether it has a kernel; it runs nothing.
    code = (
        "import dask_onnx as dx, dask.array as da, onnxruntime\n"
        "onnxruntime.InferenceSession.run = None\n"
        f"model = dx.load({asset('magika.onnx')!r})\n"
        "x = da.zeros((8, 2048), chunks=(4, 2048), dtype='int32')\n"
        "model.predict(x), model.predict(x, plan=model.plan('fused', n_stages=3))\n"
    )
    assert "sympy" not in loaded_after(code)


def test_a_client_that_computes_on_a_cluster_needs_no_onnxruntime_to_unpickle_a_graph():
    assert "onnxruntime" not in loaded_after(
        "import dask_onnx.lowering.lower, dask_onnx.collections.array"
    )
