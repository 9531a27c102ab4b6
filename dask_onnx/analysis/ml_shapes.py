"""Output types of operators of ai.onnx.ml, where ONNX's own inference leaves them open.

Each rule takes a node and the specs of its inputs, and returns the specs of its outputs, None or
nothing for those that it cannot infer. Shapes and dtypes are those that ONNX Runtime's kernels
return, whatever the model declares: a vector is one row, a regressor's output has a column for each
target, and the scores of a classifier are as many as its kernel makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from dask_onnx.core.specs import Dim, TensorSpec, same_dtype
from dask_onnx.modelio.value_types import numpy_dtype, parse_type

_Rule = Callable[[onnx.NodeProto, Sequence[TensorSpec | None]], Sequence[TensorSpec | None]]


def inferred_outputs(node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> list[TensorSpec]:
    """Return the specs of a node's outputs that say more than is known of them already.

    Parameters
    ----------
    node : NodeProto
        Node of the domain ai.onnx.ml.
    specs : mapping of value to TensorSpec
        What is known of all values. A later call may find more, once more is known of the inputs.
    """
    rule = _RULES.get(node.op_type)
    inputs = [specs.get(name) for name in node.input]
    if rule is None or not inputs or inputs[0] is None:
        return []
    found = rule(node, inputs)
    return [
        merged
        for name, spec in zip(node.output, found, strict=False)
        if spec is not None and name
        if (merged := merged_spec(name, spec, specs.get(name))) is not None
    ]


def merged_spec(name: str, spec: TensorSpec, known: TensorSpec | None) -> TensorSpec | None:
    """Return what a rule says and what is known of a value together; None if nothing is new.

    Parameters
    ----------
    name : str
        Name of the value.
    spec : TensorSpec
        Result of a rule.
    known : TensorSpec or None
        What has been inferred; its dtype and sizes go before those of the rule.
    """
    if known is not None and known.kind is not None:
        return None
    if known is None or known.dtype is None or known.shape is None:
        is_new = known is None or not same_dtype(spec.dtype, known.dtype) or spec.shape is not None
        return replace(spec, name=name) if is_new else None
    if spec.shape is None or len(spec.shape) != len(known.shape):
        return None
    dims = tuple(
        new if isinstance(new, int) and not isinstance(old, int) else old
        for new, old in zip(spec.shape, known.shape, strict=True)
    )
    return None if dims == known.shape else TensorSpec(name, known.dtype, dims)


def _attribute(node: onnx.NodeProto, *names: str) -> onnx.AttributeProto | None:
    """Return the first of these attributes that is present and not empty."""
    found: dict[str, onnx.AttributeProto] = {a.name: a for a in node.attribute}
    return next((found[name] for name in names if name in found and _length(found[name])), None)


def _length(attribute: onnx.AttributeProto) -> int:
    tensor = math.prod(attribute.t.dims) if attribute.HasField("t") else 0
    return len(attribute.ints) + len(attribute.strings) + len(attribute.floats) + tensor


def _spec(dtype: Any, shape: Sequence[Dim] | None) -> TensorSpec:
    return TensorSpec("", np.dtype(dtype), None if shape is None else tuple(shape))


def _rows(spec: TensorSpec | None) -> tuple[Dim, ...]:
    """Return the batch axis as a shape; a vector is one row."""
    if spec is None or spec.shape is None:
        return (None,)
    return spec.shape[:1] if len(spec.shape) > 1 else (1,)


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
    scores = _SCORES.get(node.op_type, _score_of_each_class)(node, _length(labels))
    return [_spec(kind, rows), _spec(np.float32, (*rows, scores))]


def _score_of_each_class(node: onnx.NodeProto, classes: int) -> int:
    return classes


def _scores_of_linear(node: onnx.NodeProto, classes: int) -> int:
    """Return the scores of LinearClassifier: one for each intercept, two if there is one."""
    intercepts = _attribute(node, "intercepts")
    if intercepts is None:
        return classes
    return 2 if _length(intercepts) == 1 and classes == 2 else _length(intercepts)


def _scores_of_svm(node: onnx.NodeProto, classes: int) -> int:
    """Return the scores of SVMClassifier: without probabilities one for each pair of classes."""
    has_pairs = _attribute(node, "support_vectors") and not _attribute(node, "prob_a")
    return max(classes * (classes - 1) // 2, 2) if has_pairs and classes != 2 else classes


_SCORES: Mapping[str, Callable[[onnx.NodeProto, int], int]] = {
    "LinearClassifier": _scores_of_linear,
    "SVMClassifier": _scores_of_svm,
}
"""Classifier to the number of scores of a row, where it is not one for each class."""


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
    if _attribute(node, "classes_strings") is not None:  # version 1
        return [_spec(np.int64 if inputs[0] and inputs[0].dtype == object else object, shape)]
    values = _attribute(node, "values_strings", "values_int64s", "values_floats", "values_tensor")
    if values is None:
        return []
    if values.HasField("t"):
        return [_spec(numpy_dtype(values.t.data_type), shape)]
    kind = object if values.strings else (np.int64 if values.ints else np.float32)
    return [_spec(kind, shape)]


def _category_mapper(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    """Return integers for strings, and strings for integers."""
    if inputs[0] is None or inputs[0].dtype is None:
        return []
    return [_spec(np.int64 if inputs[0].dtype == object else object, inputs[0].shape)]


def _dict_vectorizer(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    """Return one row with a column for each key; its dtype is that of the map's values."""
    keys = _attribute(node, "string_vocabulary", "int64_vocabulary")
    kind = None if inputs[0] is None else inputs[0].kind
    if keys is None or kind is None or not kind.startswith("map("):
        return []
    dtype = numpy_dtype(parse_type(kind).map_type.value_type.tensor_type.elem_type)
    return [_spec(dtype, (1, _length(keys)))]


_CAST_TO: Mapping[bytes, object] = {
    b"TO_FLOAT": np.float32,
    b"TO_STRING": object,
    b"TO_INT64": np.int64,
}
"""Attribute ``cast_to`` of CastMap to the dtype of its output."""


def _cast_map(
    node: onnx.NodeProto, inputs: Sequence[TensorSpec | None]
) -> Sequence[TensorSpec | None]:
    """Return one row, whose length is that of the map, or fixed for a sparse map."""
    found = {a.name: a for a in node.attribute}
    kind = _CAST_TO.get(found["cast_to"].s if "cast_to" in found else b"TO_FLOAT")
    if kind is None:
        return []
    is_sparse = "map_form" in found and found["map_form"].s == b"SPARSE"
    return [_spec(kind, (1, found["max_map"].i if is_sparse and "max_map" in found else None))]


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
    leading: tuple[Dim, ...] = table.shape[:-1] if len(table.shape) > 1 else (1,)
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
    "CastMap": _cast_map,
    "CategoryMapper": _category_mapper,
    "DictVectorizer": _dict_vectorizer,
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
