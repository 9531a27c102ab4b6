"""Cases of texts and of the operators of ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from kernel_case import ML, Case, floats, product, texts

_LETTERS = [code for code in range(1, 0x1E944) if not 0xD800 <= code < 0xE000]
"""Code points up to the last letter that has two cases."""


def _texts_cases() -> Iterator[Case]:
    words = texts("The", "", "quick fox ", " a  b", "Émile", "STRASSE")
    for given in product(delimiter=(None, "", " ", "q"), maxsplit=(None, 1, 2)):
        yield Case("StringSplit", (words,), given, outputs=2)
    for pattern in ("[a-z ]*", r"\w+", r"\d+", "(The|a)", "."):
        yield Case("RegexFullMatch", (words,), {"pattern": pattern})
    yield Case("StringConcat", (words, texts("x")), {})
    letters = texts(
        *("".join(map(chr, _LETTERS[i : i + 500])) for i in range(0, len(_LETTERS), 500)), "", "THE"
    )
    for given in product(
        case_change_action=("NONE", "LOWER", "UPPER"),
        stopwords=(None, ["The"], ["\u00c9MILE", "the", "x"]),
        is_case_sensitive=(0, 1),
    ):
        # A locale that every glibc since 2.35 has, with the letters of en_US.UTF-8.
        attributes = {**given, "locale": "C.UTF-8"}
        yield Case("StringNormalizer", (words,), attributes)
        yield Case("StringNormalizer", (words[None, :1],), attributes)
        yield Case("StringNormalizer", (letters,), attributes)
    tokens = np.array([[1, 2, 3, 1, 2], [4, 4, 2, 1, 9]])
    for given in product(
        mode=("TF", "IDF", "TFIDF"),
        weights=(None, [2.0, 3.0, 0.5, 4.0, 5.0]),
        max_skip_count=(0, 2),
        min_gram_length=(1, 2),
    ):
        grams = {"ngram_counts": [0, 3], "ngram_indexes": [4, 1, 0, 2, 3], "max_gram_length": 2}
        pool = {"pool_int64s": [1, 2, 4, 1, 2, 4, 2]}
        yield Case("TfIdfVectorizer", (tokens,), {**grams, **pool, **given})
        yield Case("TfIdfVectorizer", (tokens[0],), {**grams, **pool, **given})


_TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")


def _trees(targets: str) -> dict[str, Any]:
    """Return the attributes of two small trees for `targets`, "target" or "class"."""
    return {
        "nodes_treeids": [0, 0, 0, 1, 1, 1],
        "nodes_nodeids": [0, 1, 2, 0, 1, 2],
        "nodes_featureids": [0, 0, 0, 1, 0, 0],
        "nodes_values": [0.1, 0.0, 0.0, -0.2, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_LT", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0, 1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0, 2, 0, 0],
        "nodes_missing_value_tracks_true": [1, 0, 0, 0, 0, 0],
        f"{targets}_treeids": [0, 0, 1, 1],
        f"{targets}_nodeids": [1, 2, 1, 2],
        f"{targets}_ids": [0, 1, 0, 1],
        f"{targets}_weights": [0.3, 0.6, 0.2, 0.1],
    }


def _machine_learning() -> Iterator[Case]:
    x = floats(5, 3)
    gaps = x.copy()
    gaps[1, 0] = gaps[3, 1] = np.nan
    for transform in _TRANSFORMS:
        attributes = {**_trees("target"), "n_targets": 2, "post_transform": transform}
        for aggregate in ("SUM", "AVERAGE", "MIN", "MAX"):
            given = {**attributes, "aggregate_function": aggregate}
            yield Case("TreeEnsembleRegressor", (gaps,), given, domain=ML)
            given = {**given, "base_values": [0.5, 0.25]}
            yield Case("TreeEnsembleRegressor", (gaps,), given, domain=ML)
        for labels in ({"classlabels_int64s": [4, 7]}, {"classlabels_strings": ["a", "b"]}):
            given = {**_trees("class"), **labels, "post_transform": transform}
            yield Case("TreeEnsembleClassifier", (gaps,), given, outputs=2, domain=ML)
            one = {**given, "class_ids": [0, 0, 0, 0]}
            yield Case("TreeEnsembleClassifier", (gaps,), one, outputs=2, domain=ML)
        for count in (2, 3):
            given = {
                "coefficients": [0.5, -1.0, 2.0] * count,
                "intercepts": [0.1] * count,
                "classlabels_ints": list(range(5, 5 + count)),
                "post_transform": transform,
            }
            yield Case("LinearClassifier", (x,), given, outputs=2, domain=ML)
        one = {"coefficients": [0.5, -1, 2], "intercepts": [0.1], "post_transform": transform}
        labels = {"classlabels_ints": [0, 1]}
        yield Case("LinearClassifier", (x,), {**one, **labels}, outputs=2, domain=ML)
        named = {"classlabels_strings": ["no", "yes"]}
        yield Case("LinearClassifier", (x,), {**one, **named}, outputs=2, domain=ML)
        yield Case("LinearRegressor", (x,), one, domain=ML)
        given = {**one, "coefficients": [0.5, -1.0, 2.0] * 2, "intercepts": [0.1, 1], "targets": 2}
        yield Case("LinearRegressor", (x,), given, domain=ML)
        yield from _support_vectors(x, transform)
    for norm in ("MAX", "L1", "L2"):
        yield Case("Normalizer", (x,), {"norm": norm}, domain=ML)
        yield Case("Normalizer", (-np.abs(x),), {"norm": norm}, domain=ML)
        yield Case("Normalizer", (np.zeros((2, 3), np.float32),), {"norm": norm}, domain=ML)
    for offset, scale in (([0.1, 0.2, 0.3], [2.0, 3.0, 4.0]), ([0.5], [2.0])):
        yield Case("Scaler", (x,), {"offset": offset, "scale": scale}, domain=ML)
        given = {"offset": offset, "scale": scale}
        yield Case("Scaler", (np.arange(6).reshape(2, 3),), given, domain=ML)
    for replaced in (np.nan, 1.0):
        for values in ([7.0], [7.0, 8.0, 9.0]):
            given = {"imputed_value_floats": values, "replaced_value_float": replaced}
            filled = np.where(np.isnan(gaps), replaced, gaps).astype(np.float32)
            yield Case("Imputer", (filled,), given, domain=ML)
    given = {"imputed_value_int64s": [9], "replaced_value_int64": 2}
    yield Case("Imputer", (np.array([[1, 2, 3]]),), given, domain=ML)
    yield from _ensembles(x)
    yield from _encoders(x)


def _support_vectors(x: np.ndarray, transform: str) -> Iterator[Case]:
    vectors = [0.5, -1.0, 0.3, 1.0, 0.2, -0.4, 0.1, 0.9, 0.8, -0.6, 0.2, 0.7]
    for kernel in ("LINEAR", "RBF", "POLY", "SIGMOID"):
        common = {
            "kernel_type": kernel,
            "kernel_params": [0.5, 0.25, 2.0],
            "support_vectors": vectors,
            "post_transform": transform,
        }
        given = {**common, "coefficients": [0.5, -0.3, 1, 0.2], "rho": [0.1], "n_supports": 4}
        yield Case("SVMRegressor", (x,), given, domain=ML)
        for extra in ({}, {"prob_a": [-1.5], "prob_b": [0.1]}):
            given = {
                **common,
                **extra,
                "coefficients": [0.5, -0.3, 1, 0.2],
                "rho": [0.1],
                "vectors_per_class": [2, 2],
                "classlabels_ints": [0, 1],
            }
            yield Case("SVMClassifier", (x,), given, outputs=2, domain=ML)
    single = {
        "kernel_type": "LINEAR",
        "kernel_params": [0.5, 0.0, 3.0],
        "support_vectors": [1.0] * x.shape[1],
        "coefficients": [1.0],
        "rho": [0.1],
        "vectors_per_class": [1],
        "classlabels_ints": [0],
    }
    yield Case("SVMClassifier", (x,), single, outputs=2, domain=ML)


def _ensembles(x: np.ndarray) -> Iterator[Case]:
    double = np.array([0.1, -0.2]), np.array([0.5, 1.5, 0.25])
    for transform in (0, 1, 2):
        yield Case(
            "TreeEnsemble",
            (x.astype(np.float64),),
            {
                "n_targets": 2,
                "post_transform": transform,
                "tree_roots": [0],
                "nodes_featureids": [0, 1],
                "nodes_splits": onnx.numpy_helper.from_array(double[0], "splits"),
                "nodes_modes": onnx.numpy_helper.from_array(np.zeros(2, np.uint8), "modes"),
                "nodes_truenodeids": [0, 1],
                "nodes_trueleafs": [1, 1],
                "nodes_falsenodeids": [1, 2],
                "nodes_falseleafs": [0, 1],
                "leaf_targetids": [0, 1, 1],
                "leaf_weights": onnx.numpy_helper.from_array(double[1], "weights"),
            },
            domain=ML,
            opset=5,
        )


def _encoders(x: np.ndarray) -> Iterator[Case]:
    words, numbers = texts("b", "zz", "a"), np.array([3, 9, 1])
    for source, key, keys in (
        (words, "keys_strings", ["a", "b"]),
        (numbers, "keys_int64s", [1, 3]),
        (np.array([1.5, np.nan, 2.5], np.float32), "keys_floats", [1.5, np.nan]),
    ):
        for target, values, default in (
            ("strings", ["x", "y"], {"default_string": "none"}),
            ("int64s", [5, 6], {"default_int64": -7}),
            ("floats", [0.5, 0.25], {"default_float": 3.5}),
        ):
            for extra in ({}, default):
                given = {key: keys, f"values_{target}": values, **extra}
                yield Case("LabelEncoder", (source,), given, domain=ML)
    for given in product(zeros=(0, 1)):
        yield Case("OneHotEncoder", (numbers,), {**given, "cats_int64s": [1, 3, 9]}, domain=ML)
        yield Case(
            "OneHotEncoder", (words,), {**given, "cats_strings": ["a", "b", "zz"]}, domain=ML
        )
        yield Case(
            "OneHotEncoder", (numbers[:, None],), {**given, "cats_int64s": [9, 1, 3]}, domain=ML
        )
    yield Case("OneHotEncoder", (numbers,), {"zeros": 1, "cats_int64s": [1]}, domain=ML)
    yield Case("Binarizer", (x,), {"threshold": 0.25}, domain=ML)
    yield Case("ArrayFeatureExtractor", (x, np.array([2, 0])), {}, domain=ML)
    yield Case("ArrayFeatureExtractor", (x[0], np.array([2, 0])), {}, domain=ML)
    yield Case("FeatureVectorizer", (x, x[:, :2]), {"inputdimensions": [3, 2]}, domain=ML)
    whole = np.arange(10).reshape(5, 2)
    yield Case("FeatureVectorizer", (whole, whole), {"inputdimensions": [2, 2]}, domain=ML)


CASES = (
    _texts_cases,
    _machine_learning,
)
"""Functions that yield the cases of this module."""
