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
    from dask_onnx.analysis.axes.axis_report import AxisFact, AxisTable
    from dask_onnx.analysis.batch_facts import BatchFacts
    from dask_onnx.analysis.report import Analysis
    from dask_onnx.api.generator import Generator
    from dask_onnx.api.image_model import ImageModel
    from dask_onnx.api.loading import load
    from dask_onnx.api.model import Model
    from dask_onnx.api.plan import Plan
    from dask_onnx.api.text_model import TextModel
    from dask_onnx.api.verify import AxisCheck, Verification, verify_axes
    from dask_onnx.cluster.configuration import calibrate, configure
    from dask_onnx.cluster.placement import Placement
    from dask_onnx.collections.images.boxes import Boxes
    from dask_onnx.collections.images.geometry import Geometry
    from dask_onnx.collections.images.image_results import ImageResult
    from dask_onnx.collections.images.object_details import BoxMask
    from dask_onnx.collections.images.resize import Resize
    from dask_onnx.composites.chain import Chain, chain
    from dask_onnx.composites.compose import compose
    from dask_onnx.composites.composite import Composite
    from dask_onnx.composites.composite_plan import CompositePlan
    from dask_onnx.composites.each_stream import EachStream
    from dask_onnx.composites.merge_choice import MergeChoice
    from dask_onnx.core.errors import (
        ClusterError,
        CrashError,
        DaskOnnxError,
        InputError,
        ModelError,
        OutputError,
        PlanError,
        RunError,
        StageError,
        StoreError,
        Suggestion,
        TimeLimitError,
        UnexpectedModelError,
    )
    from dask_onnx.core.specs import SessionSpec, TensorSpec
    from dask_onnx.diagnostics.diagnosis import Diagnosis, diagnose
    from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile, load_profile
    from dask_onnx.diagnostics.profiling.profiler import Profiler, profile
    from dask_onnx.diagnostics.profiling.run_comparison import Comparison
    from dask_onnx.diagnostics.profiling.run_profile import RunProfile
    from dask_onnx.diagnostics.profiling.run_summary import RunSummary
    from dask_onnx.diagnostics.summary import Summary
    from dask_onnx.generation.generated import GeneratedToken, Generation
    from dask_onnx.jobs.file_generation import generate_files
    from dask_onnx.jobs.file_prediction import predict_files
    from dask_onnx.jobs.job_result import FilePrediction
    from dask_onnx.planning.alternatives import Alternative, Verdict
    from dask_onnx.planning.measured_stages import Measured
    from dask_onnx.planning.recipe import Strategy, at_values, from_annotations
    from dask_onnx.planning.stages import Edge, Stage, StageGraph
    from dask_onnx.planning.strategies import Branches, Fused, Pipeline
    from dask_onnx.planning.timeline import Timeline
    from dask_onnx.planning.worker_memory import WorkerMemory
    from dask_onnx.sharding.sequence_plan import SequencePlan
    from dask_onnx.sharding.strategy import Sharded
    from dask_onnx.sharding.tensor_plan import TensorPlan
    from dask_onnx.streams.frame_results import DeadLetter, Dropped, Swap
    from dask_onnx.streams.running_stream import Stream
    from dask_onnx.streams.stream import stream
    from dask_onnx.streams.stream_statistics import StreamStatistics
    from dask_onnx.tiles.detect import detect_sliced
    from dask_onnx.tiles.predict import predict_tiled
    from dask_onnx.tiles.tiling_drift import TilingDrift, tiling_drift

_HOMES = {
    "Alternative": "planning.alternatives",
    "Analysis": "analysis.report",
    "AxisCheck": "api.verify",
    "AxisFact": "analysis.axes.axis_report",
    "AxisTable": "analysis.axes.axis_report",
    "BatchFacts": "analysis.batch_facts",
    "BoxMask": "collections.images.object_details",
    "Boxes": "collections.images.boxes",
    "Branches": "planning.strategies",
    "Chain": "composites.chain",
    "ClusterError": "core.errors",
    "Comparison": "diagnostics.profiling.run_comparison",
    "Composite": "composites.composite",
    "CompositePlan": "composites.composite_plan",
    "CrashError": "core.errors",
    "DaskOnnxError": "core.errors",
    "DeadLetter": "streams.frame_results",
    "Diagnosis": "diagnostics.diagnosis",
    "Dropped": "streams.frame_results",
    "EachStream": "composites.each_stream",
    "Edge": "planning.stages",
    "FilePrediction": "jobs.job_result",
    "FinishedProfile": "diagnostics.profiling.finished_profile",
    "Fused": "planning.strategies",
    "GeneratedToken": "generation.generated",
    "Generation": "generation.generated",
    "Generator": "api.generator",
    "Geometry": "collections.images.geometry",
    "ImageModel": "api.image_model",
    "ImageResult": "collections.images.image_results",
    "InputError": "core.errors",
    "Measured": "planning.measured_stages",
    "MergeChoice": "composites.merge_choice",
    "Model": "api.model",
    "ModelError": "core.errors",
    "OutputError": "core.errors",
    "Pipeline": "planning.strategies",
    "Placement": "cluster.placement",
    "Plan": "api.plan",
    "PlanError": "core.errors",
    "Profiler": "diagnostics.profiling.profiler",
    "Resize": "collections.images.resize",
    "RunError": "core.errors",
    "RunProfile": "diagnostics.profiling.run_profile",
    "RunSummary": "diagnostics.profiling.run_summary",
    "SequencePlan": "sharding.sequence_plan",
    "SessionSpec": "core.specs",
    "Sharded": "sharding.strategy",
    "Stage": "planning.stages",
    "StageError": "core.errors",
    "StageGraph": "planning.stages",
    "StoreError": "core.errors",
    "Strategy": "planning.recipe",
    "Stream": "streams.running_stream",
    "StreamStatistics": "streams.stream_statistics",
    "Suggestion": "core.errors",
    "Summary": "diagnostics.summary",
    "Swap": "streams.frame_results",
    "TensorPlan": "sharding.tensor_plan",
    "TensorSpec": "core.specs",
    "TextModel": "api.text_model",
    "TilingDrift": "tiles.tiling_drift",
    "TimeLimitError": "core.errors",
    "Timeline": "planning.timeline",
    "UnexpectedModelError": "core.errors",
    "Verdict": "planning.alternatives",
    "Verification": "api.verify",
    "WorkerMemory": "planning.worker_memory",
    "at_values": "planning.recipe",
    "calibrate": "cluster.configuration",
    "chain": "composites.chain",
    "compose": "composites.compose",
    "configure": "cluster.configuration",
    "detect_sliced": "tiles.detect",
    "diagnose": "diagnostics.diagnosis",
    "from_annotations": "planning.recipe",
    "generate_files": "jobs.file_generation",
    "load": "api.loading",
    "load_profile": "diagnostics.profiling.finished_profile",
    "predict_files": "jobs.file_prediction",
    "predict_tiled": "tiles.predict",
    "profile": "diagnostics.profiling.profiler",
    "stream": "streams.stream",
    "tiling_drift": "tiles.tiling_drift",
    "verify_axes": "api.verify",
}

__version__: str
"""Version of the installed package."""

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        return metadata.version("dask-onnx")
    if name in ("backend", "io"):  # modules, which nobody pays for who does not ask for them
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
