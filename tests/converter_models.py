"""Small models in the form in which converters write them, made by hand."""

from __future__ import annotations

import numpy as np
from builders import make_model, node, value
from onnx import TensorProto, helper

ML = {"domain": "ai.onnx.ml"}
FEATURES = 3
STRINGS, INTEGERS = ("low", "mid", "high"), (3, 1, 2)
X = np.random.default_rng(5).normal(size=(11, FEATURES)).astype(np.float32)


def trees(kind, count):
    """Return the attributes of one tree for each target or class, split at different features."""
    ids = [tree for tree in range(count) for _ in range(3)]
    leaves = [tree for tree in range(count) for _ in range(2)]
    return {
        "nodes_treeids": ids,
        "nodes_nodeids": [0, 1, 2] * count,
        "nodes_featureids": [tree % FEATURES for tree in ids],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * count,
        "nodes_values": [0.1, 0.0, 0.0] * count,
        "nodes_truenodeids": [1, 0, 0] * count,
        "nodes_falsenodeids": [2, 0, 0] * count,
        f"{kind}_treeids": leaves,
        f"{kind}_nodeids": [1, 2] * count,
        f"{kind}_ids": leaves,
        f"{kind}_weights": [0.3 * (i + 1) for i in range(2 * count)],
    }


def regressor(output, targets=1):
    attributes = {"n_targets": targets, **trees("target", targets), **ML}
    return node("TreeEnsembleRegressor", "x", output, "trees", **attributes)


def classifier(outputs, labels):
    key = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"
    attributes = {key: list(labels), "post_transform": "SOFTMAX", **trees("class", len(labels))}
    return node("TreeEnsembleClassifier", "x", outputs, f"trees {outputs}", **attributes, **ML)


def zip_map(source, output, labels):
    key = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"
    return node("ZipMap", source, output, "zip", **{key: list(labels)}, **ML)


def maps_of(name, labels):
    key = TensorProto.STRING if isinstance(labels[0], str) else TensorProto.INT64
    scalar = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(key, scalar))
    return helper.make_value_info(name, maps)


def label_type(labels):
    return TensorProto.STRING if isinstance(labels[0], str) else TensorProto.INT64


def model(nodes, outputs):
    domains = {"ai.onnx.ml": 2}
    return make_model(nodes, [value("x", ["N", FEATURES])], outputs, domains=domains)


def catboost_regressor():
    """Its output is declared as a vector, and the kernel gives a column."""
    return model([regressor("predictions")], [value("predictions", ["N"])])


def catboost_classifier(labels):
    return model(
        [classifier("label scores", labels), zip_map("scores", "probabilities", labels)],
        [value("label", ["N"], label_type(labels)), maps_of("probabilities", labels)],
    )


def lightgbm_regressor():
    return model(
        [regressor("r"), node("Identity", "r", "variable")], [value("variable", [None, 1])]
    )


def lightgbm_classifier(labels):
    """Its label is declared as one row, whatever the number of rows is."""
    return model(
        [
            classifier("l p", labels),
            node("Identity", "p", "q"),
            node("Identity", "q", "scores"),
            node("Cast", "l", "label", to=label_type(labels))
            if label_type(labels) == TensorProto.INT64
            else node("Identity", "l", "label"),
            zip_map("scores", "probabilities", labels),
        ],
        [value("label", [1], label_type(labels)), maps_of("probabilities", labels)],
    )


def xgboost_classifier(labels):
    return model(
        [classifier("label probabilities", labels)],
        [
            value("label", [None], label_type(labels)),
            value("probabilities", [None, len(labels)]),
        ],
    )


def several_targets():
    """A label for each target, and a sequence with the scores of each."""
    sequence = helper.make_tensor_sequence_value_info("probabilities", TensorProto.FLOAT, None)
    return model(
        [
            classifier("l1 p1", INTEGERS),
            classifier("l2 p2", INTEGERS[:2]),
            node("Reshape", "l1 column", "c1"),
            node("Reshape", "l2 column", "c2"),
            node("Concat", "c1 c2", "label", axis=1),
            node("SequenceConstruct", "p1 p2", "probabilities"),
        ],
        [value("label", [None, 2], TensorProto.INT64), sequence],
    )


def with_column_shape(proto):
    """Return a model with the initializer that `several_targets` reshapes by."""
    tensor = helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1])
    proto.graph.initializer.append(tensor)
    return proto


MODELS = {
    "catboost regressor": catboost_regressor,
    "catboost classifier, strings": lambda: catboost_classifier(STRINGS),
    "catboost classifier, integers": lambda: catboost_classifier(INTEGERS),
    "catboost classifier, two classes": lambda: catboost_classifier(INTEGERS[:2]),
    "lightgbm regressor": lightgbm_regressor,
    "lightgbm classifier, strings": lambda: lightgbm_classifier(STRINGS),
    "lightgbm classifier, integers": lambda: lightgbm_classifier(INTEGERS),
    "xgboost classifier": lambda: xgboost_classifier(INTEGERS),
    "several targets": lambda: with_column_shape(several_targets()),
}
"""Name of a form to a function that makes its model."""
