"""The public names, and the modules that importing them loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dask_onnx as dx

NAMES = [
    "Alternative",
    "Analysis",
    "AxisCheck",
    "AxisFact",
    "AxisTable",
    "BatchFacts",
    "BoxMask",
    "Boxes",
    "Branches",
    "Chain",
    "ClusterError",
    "Comparison",
    "Composite",
    "CompositePlan",
    "CrashError",
    "DaskOnnxError",
    "DeadLetter",
    "Diagnosis",
    "Dropped",
    "EachStream",
    "Edge",
    "FilePrediction",
    "FinishedProfile",
    "Fused",
    "GeneratedToken",
    "Generation",
    "Generator",
    "Geometry",
    "ImageModel",
    "ImageResult",
    "InputError",
    "Measured",
    "MergeChoice",
    "Model",
    "ModelError",
    "OutputError",
    "Pipeline",
    "Placement",
    "Plan",
    "PlanError",
    "Profiler",
    "Resize",
    "RunError",
    "RunProfile",
    "RunSummary",
    "SequencePlan",
    "SessionSpec",
    "Sharded",
    "Stage",
    "StageError",
    "StageGraph",
    "StoreError",
    "Strategy",
    "Stream",
    "StreamStatistics",
    "Suggestion",
    "Summary",
    "Swap",
    "TensorPlan",
    "TensorSpec",
    "TextModel",
    "TilingDrift",
    "TimeLimitError",
    "Timeline",
    "UnexpectedModelError",
    "Verdict",
    "Verification",
    "WorkerMemory",
    "at_values",
    "calibrate",
    "chain",
    "compose",
    "configure",
    "detect_sliced",
    "diagnose",
    "from_annotations",
    "generate_files",
    "load",
    "load_profile",
    "predict_files",
    "predict_tiled",
    "profile",
    "stream",
    "tiling_drift",
    "verify_axes",
]


def test_public_names_are_unchanged():
    assert dx.__all__ == NAMES
    assert set(NAMES) <= set(dir(dx))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring(name):
    assert getattr(dx, name).__doc__


def test_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        dx.laod  # noqa: B018 - the access raises


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
    # Planning asks ONNX Runtime for each kind of node for its kernel, and runs nothing.
    code = (
        "import dask_onnx as dx, dask.array as da, onnxruntime\n"
        "onnxruntime.InferenceSession.run = None\n"
        f"model = dx.load({asset('magika.onnx')!r})\n"
        "x = da.zeros((8, 2048), chunks=(4, 2048), dtype='int32')\n"
        "model.predict(x), model.predict(x, plan=model.plan('fused', n_stages=3))\n"
    )
    assert "sympy" not in loaded_after(code)


def test_unpickling_a_graph_imports_no_onnxruntime():
    assert "onnxruntime" not in loaded_after(
        "import dask_onnx.lowering.lower, dask_onnx.collections.array"
    )
