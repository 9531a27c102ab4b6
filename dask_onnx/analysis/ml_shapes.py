"""Output types of operators of ai.onnx.ml, where ONNX's own inference leaves them open.

Each rule takes a node and the specs of its inputs, and returns the specs of its outputs, None or
nothing for those that it cannot infer. Shapes are those of the operators' descriptions in the ONNX
specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from dask_onnx.core.specs import Dim, TensorSpec

_Rule = Callable[[onnx.NodeProto, Sequence[TensorSpec | None]], Sequence[TensorSpec | None]]


def inferred_outputs(node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> list[TensorSpec]:
    """Return the specs of a node's outputs; those that cannot be inferred are left out."""
    rule = _RULES.get(node.op_type)
    inputs = [specs.get(name) for name in node.input]
    if rule is None or not inputs or inputs[0] is None or inputs[0].shape is None:
        return []
    found = rule(node, inputs)
    return [
        TensorSpec(name, spec.dtype, spec.shape)
        for name, spec in zip(node.output, found, strict=False)
        if spec is not None and name
    ]


def _attribute(node: onnx.NodeProto, *names: str) -> onnx.AttributeProto | None:
    """Return the first of these attributes that is present and not empty."""
    found: dict[str, onnx.AttributeProto] = {a.name: a for a in node.attribute}
    return next((found[name] for name in names if name in found and _length(found[name])), None)


def _length(attribute: onnx.AttributeProto) -> int:
    tensor = math.prod(attribute.t.dims) if attribute.HasField("t") else 0
    return len(attribute.ints) + len(attribute.strings) + len(attribute.floats) + tensor


def _spec(dtype: object, shape: Sequence[Dim] | None) -> TensorSpec:
    return TensorSpec("", np.dtype(dtype), None if shape is None else tuple(shape))  # type: ignore[call-overload]


def _rows(spec: TensorSpec | None) -> tuple[Dim, ...]:
    """Return the batch axis as a shape; a vector is one row."""
    shape = () if spec is None else spec.shape or ()
    return shape[:1] if len(shape) > 1 else (1,)


def _same_shape(dtype: object) -> _Rule:
    return lambda node, inputs: [_spec(dtype, inputs[0].shape if inputs[0] else None)]


def _like_input(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    return [inputs[0]]


def _classifier(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    """Return a label for each row, and a score for each row and class."""
    labels = _attribute(node, "classlabels_strings", "classlabels_int64s", "classlabels_ints")
    if labels is None:
        return []
    kind = object if labels.strings else np.int64
    rows = _rows(inputs[0])
    return [_spec(kind, rows), _spec(np.float32, (*rows, _length(labels)))]


def _regressor(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    """Return a number for each row and target."""
    targets = next((a.i for a in node.attribute if a.name in ("n_targets", "targets")), 1)
    dtype = inputs[0].dtype if inputs[0] and node.op_type == "TreeEnsemble" else np.float32
    return [_spec(dtype, (*_rows(inputs[0]), targets or 1))]


def _label_encoder(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    shape = inputs[0].shape if inputs[0] else None
    values = _attribute(node, "values_strings", "values_int64s", "values_floats", "values_tensor")
    if values is None or values.HasField("t"):
        return []
    kind = object if values.strings else (np.int64 if values.ints else np.float32)
    return [_spec(kind, shape)]


def _one_hot(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    categories = _attribute(node, "cats_strings", "cats_int64s")
    if categories is None or inputs[0] is None or inputs[0].shape is None:
        return []
    return [_spec(np.float32, (*inputs[0].shape, _length(categories)))]


def _extractor(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    """Return the chosen columns of the last axis; a vector becomes one row."""
    table, indices = inputs[0], inputs[1]
    if table is None or table.shape is None or indices is None or indices.shape is None:
        return []
    sizes = [size for size in indices.shape if isinstance(size, int)]
    count = math.prod(sizes) if len(sizes) == len(indices.shape) else None
    leading = table.shape[:-1] if len(table.shape) > 1 else (1,)
    return [TensorSpec("", table.dtype, (*leading, count))]


def _vectorizer(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    widths = next((list(a.ints) for a in node.attribute if a.name == "inputdimensions"), None)
    if widths is None:
        return []
    return [_spec(np.float32, (*_rows(inputs[0]), sum(widths)))]


_RULES: Mapping[str, _Rule] = {
    "ArrayFeatureExtractor": _extractor,
    "Binarizer": _like_input,
    "FeatureVectorizer": _vectorizer,
    "Imputer": _like_input,
    "LabelEncoder": _label_encoder,
    "LinearClassifier": _classifier,
    "LinearRegressor": _regressor,
    "Normalizer": _same_shape(np.float32),
    "OneHotEncoder": _one_hot,
    "SVMClassifier": _classifier,
    "SVMRegressor": _regressor,
    "Scaler": _same_shape(np.float32),
    "TreeEnsemble": _regressor,
    "TreeEnsembleClassifier": _classifier,
    "TreeEnsembleRegressor": _regressor,
}
