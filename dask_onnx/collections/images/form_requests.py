"""Statements of a caller and a model about the form of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.collections.images.box_readers import Decode, Format
from dask_onnx.collections.images.input_layout import InputLayout, Size
from dask_onnx.collections.images.model_metadata import ModelNotes
from dask_onnx.core.specs import TensorSpec

Task = Literal["auto", "boxes", "labels", "mask", "text", "raw"]
"""Form of the results, as `ImageModel` takes it."""
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True, slots=True)
class FormRequest:
    """Statements of the caller and of the model about the form of results."""

    facts: GraphFacts
    inputs: tuple[TensorSpec, ...]
    """Inputs of the model."""
    outputs: tuple[TensorSpec, ...]
    """Outputs to read."""
    layout: InputLayout
    """Layout of the input for images."""
    notes: ModelNotes
    """Metadata of the model."""
    is_yolo: bool
    """True if the preparation is that of YOLO."""
    is_text_map: bool
    """True if the preparation is that of a model whose output is a map of text."""
    class_count: int | None
    """Number of classes whose names are known."""
    task: Task = "auto"
    format: Format = "auto"
    decode: Decode | None = None
    normalized: bool = False
    top: bool = False
    """True if the caller asks for the best classes."""
    keypoints: tuple[int, int] | None = None
    """Key points of each object and numbers of each, as the caller or the model states them."""
    alphabet: tuple[str, ...] | None = None
    """Characters of a recognition model, as the caller or the model states them."""

    @property
    def size(self) -> Size:
        """Height and width of the model's input; 640 where they are open."""
        return self.layout.height or 640, self.layout.width or 640
