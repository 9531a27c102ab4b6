"""ONNX models on a Dask cluster.

    import dask_onnx as dx

    model = dx.load("model.onnx")
    result = model.predict(array)

The names below are loaded when they are first used: importing the package costs little more than
importing dask, and imports neither onnx nor onnxruntime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if os.name == "nt":
    raise ImportError(
        "dask_onnx runs on POSIX systems only (Linux, macOS): its store of weights needs file "
        "locks and memory maps that Windows lacks; use the Windows Subsystem for Linux"
    )

if TYPE_CHECKING:
    from dask_onnx.api.loading import load
    from dask_onnx.api.model import Model
    from dask_onnx.api.plan import Plan
    from dask_onnx.api.text_model import TextModel
    from dask_onnx.api.verify import verify_axes
    from dask_onnx.cluster.configuration import calibrate, configure
    from dask_onnx.cluster.placement import Placement
    from dask_onnx.core.errors import (
        DaskOnnxError,
        InputError,
        ModelError,
        PlanError,
        RunError,
        StageError,
        StoreError,
        Suggestion,
    )
    from dask_onnx.core.specs import SessionSpec, TensorSpec
    from dask_onnx.jobs.file_prediction import predict_files
    from dask_onnx.planning.recipe import Strategy, at_values, from_annotations
    from dask_onnx.planning.stages import Edge, Stage, StageGraph
    from dask_onnx.planning.strategies import Branches, Fused, Pipeline
    from dask_onnx.sharding.strategy import Sharded
    from dask_onnx.tiles.boxes import Boxes
    from dask_onnx.tiles.detect import detect_sliced
    from dask_onnx.tiles.predict import predict_tiled, tiling_drift

_HOMES = {
    "load": "api.loading",
    "Model": "api.model",
    "TextModel": "api.text_model",
    "Plan": "api.plan",
    "calibrate": "cluster.configuration",
    "configure": "cluster.configuration",
    "Placement": "cluster.placement",
    "Strategy": "planning.recipe",
    "at_values": "planning.recipe",
    "from_annotations": "planning.recipe",
    "Stage": "planning.stages",
    "Edge": "planning.stages",
    "StageGraph": "planning.stages",
    "TensorSpec": "core.specs",
    "SessionSpec": "core.specs",
    "DaskOnnxError": "core.errors",
    "InputError": "core.errors",
    "ModelError": "core.errors",
    "PlanError": "core.errors",
    "RunError": "core.errors",
    "StageError": "core.errors",
    "StoreError": "core.errors",
    "Suggestion": "core.errors",
    "Sharded": "sharding.strategy",
    "Boxes": "tiles.boxes",
    "Branches": "planning.strategies",
    "Fused": "planning.strategies",
    "Pipeline": "planning.strategies",
    "detect_sliced": "tiles.detect",
    "predict_files": "jobs.file_prediction",
    "predict_tiled": "tiles.predict",
    "tiling_drift": "tiles.predict",
    "verify_axes": "api.verify",
}

__version__: str
"""Version of the installed package."""

__all__ = [
    "Boxes",
    "Branches",
    "DaskOnnxError",
    "Edge",
    "Fused",
    "InputError",
    "Model",
    "ModelError",
    "Pipeline",
    "Placement",
    "Plan",
    "PlanError",
    "RunError",
    "SessionSpec",
    "Sharded",
    "Stage",
    "StageError",
    "StageGraph",
    "StoreError",
    "Strategy",
    "Suggestion",
    "TensorSpec",
    "TextModel",
    "at_values",
    "calibrate",
    "configure",
    "detect_sliced",
    "from_annotations",
    "load",
    "predict_files",
    "predict_tiled",
    "tiling_drift",
    "verify_axes",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        return metadata.version("dask-onnx")
    if name == "backend":  # a module, which nobody pays for who does not ask for it
        return importlib.import_module(f"{__name__}.backend")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
