"""Models of PyTorch for `torch_exports.py` whose export needs more than a call of the exporter.

Suppression of overlapping boxes, branches by torch.cond, and arithmetic in eight bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxscript
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torch.nn import functional
from torch_models import BATCH, Case, case, named, normal
from torch_special_models import Boxes

_OVERLAP, _SCORE, _MOST = 0.5, 0.2, 5


@torch.library.custom_op("boxes::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor) -> Tensor:
    """Return the boxes that are kept, as ONNX's NonMaxSuppression does.

    Parameters
    ----------
    boxes : float32, shape (rows, boxes, 4)
        Corners.
    scores : float32, shape (rows, classes, boxes)

    Returns
    -------
    int64, shape (kept, 3)
        Row, class and box of each.
    """
    found = []
    for row in range(boxes.shape[0]):
        area = (boxes[row, :, 2:] - boxes[row, :, :2]).prod(-1)
        for number in range(scores.shape[1]):
            kept: list[int] = []
            for box in scores[row, number].argsort(descending=True, stable=True).tolist():
                if scores[row, number, box] <= _SCORE or len(kept) == _MOST:
                    break
                others = boxes[row, kept]
                low = torch.maximum(others[:, :2], boxes[row, box, :2])
                high = torch.minimum(others[:, 2:], boxes[row, box, 2:])
                shared = (high - low).clamp(min=0).prod(-1)
                if not (shared / (area[kept] + area[box] - shared) > _OVERLAP).any():
                    kept.append(box)
            found += [(row, number, box) for box in kept]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)


_onnx: Any = onnxscript.opset18


def _translated(boxes: Any, scores: Any) -> Any:
    numbers = (
        _onnx.Constant(value_ints=[_MOST]),
        _onnx.Constant(value_floats=[_OVERLAP]),
        _onnx.Constant(value_floats=[_SCORE]),
    )
    return _onnx.NonMaxSuppression(boxes, scores, *numbers)


def _symbolic(g: Any, boxes: Any, scores: Any) -> Any:
    numbers = (
        g.op("Constant", value_t=torch.tensor([_MOST])),
        g.op("Constant", value_t=torch.tensor([_OVERLAP])),
        g.op("Constant", value_t=torch.tensor([_SCORE])),
    )
    return g.op("NonMaxSuppression", boxes, scores, *numbers)


class Detector(Boxes):
    """A detector with the suppression of overlapping boxes in its graph."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two results
        found = super().forward(x)
        kept = torch.ops.boxes.suppress(found[..., :4], found[..., 4:].transpose(1, 2))
        return found[kept[:, 0], kept[:, 2]], kept


@case
def detector_with_suppression() -> Case:
    torch.onnx.register_custom_op_symbolic("boxes::suppress", _symbolic, 18)
    return Case(
        Detector,
        named(x=normal(0, 3, 32, 32)),
        {"x": BATCH, "boxes": {0: "kept"}, "kept": {0: "kept"}},
        ("boxes", "kept"),
        options={
            "dynamo": {"custom_translation_table": {torch.ops.boxes.suppress.default: _translated}}
        },
    )


class Conditional(nn.Module):
    """A branch by torch.cond on a flag that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        return torch.cond(flag.sum() > 0, lambda v: self.layer(v), lambda v: v * 2.0, (x,))


@case
def conditional() -> Case:
    def flag(rows: int, rng: np.random.Generator) -> np.ndarray:
        return np.ones(1, np.float32)

    return Case(
        Conditional,
        named(x=normal(0, 4), flag=flag),
        {"x": BATCH, "y": BATCH},
        exporters=("dynamo",),
    )


class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(self.head(self.body(x).mean(1)), -1)


def _quantise(path: str) -> None:
    quantize_dynamic(path, path, weight_type=QuantType.QInt8)


@case
def dynamically_quantised() -> Case:
    """A range over all rows of a run: cutting them changes results a little."""
    return Case(
        functools.partial(TextClassifier),
        named(x=normal(0, 6, 32)),
        {"x": BATCH, "y": BATCH},
        exporters=("trace",),
        after=_quantise,
        limit=5e-2,
    )
