"""Shapes and dtypes behind operators of ai.onnx.ml equal those that ONNX Runtime returns."""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx
from dask_onnx.analysis.batch import find_batch
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.runtime.known_bad_kernels import known_bad_kernel

ML = "ai.onnx.ml"
ROWS = 5
POST = ("NONE", "SOFTMAX_ZERO", "PROBIT")
F32, F64, I32, I64, TEXT = np.float32, np.float64, np.int32, np.int64, object


def values(shape, dtype):
    count = int(np.prod(shape))
    numbers = np.arange(count).reshape(shape) * 3 % 7
    if dtype is TEXT:
        return np.array([f"s{n}" for n in numbers.reshape(-1)], object).reshape(shape)
    return numbers.astype(dtype)


def case(op_type, inputs, version=3, **attributes):
    """Return a case: operator, version, input shapes with dtypes, attributes."""
    return op_type, version, inputs, attributes


def tables(*dtypes, width=3):
    """Return a vector and a matrix of each dtype."""
    return [((shape, dtype),) for dtype in dtypes for shape in ((width,), (ROWS, width))]


def tree(n_targets, *, classes=None):
    """Return the attributes of trees with one split each, for each target or class."""
    nodes = {
        "nodes_treeids": [t for t in range(n_targets) for _ in range(3)],
        "nodes_nodeids": [0, 1, 2] * n_targets,
        "nodes_featureids": [0, 0, 0] * n_targets,
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * n_targets,
        "nodes_values": [0.5, 0.0, 0.0] * n_targets,
        "nodes_truenodeids": [1, 0, 0] * n_targets,
        "nodes_falsenodeids": [2, 0, 0] * n_targets,
    }
    kind = "target" if classes is None else "class"
    leaves = {
        f"{kind}_treeids": [t for t in range(n_targets) for _ in range(2)],
        f"{kind}_nodeids": [1, 2] * n_targets,
        f"{kind}_ids": [t for t in range(n_targets) for _ in range(2)],
        f"{kind}_weights": [1.0, 2.0] * n_targets,
    }
    return {**nodes, **leaves}


def labels(n_classes, *, strings, integers="classlabels_ints"):
    if strings:
        return {"classlabels_strings": [f"c{i}" for i in range(n_classes)]}
    return {integers: list(range(n_classes))}


def svm_classifier(n_classes, *, strings, probabilities=False, post="NONE"):
    vectors = n_classes
    pairs = n_classes * (n_classes - 1) // 2
    found = {
        "kernel_type": "LINEAR",
        "kernel_params": [0.5, 0.0, 3.0],
        "support_vectors": [float(i) for i in range(vectors * 3)],
        "vectors_per_class": [1] * n_classes,
        "coefficients": [1.0] * (vectors * max(n_classes - 1, 1)),
        "rho": [0.1] * max(pairs, 1),
        "post_transform": post,
    }
    found |= labels(n_classes, strings=strings)
    if probabilities:
        found |= {"prob_a": [0.5] * max(pairs, 1), "prob_b": [0.1] * max(pairs, 1)}
    return found


def ml_cases():
    for inputs in tables(F32, F64, I32, I64, TEXT, width=4):
        yield case("ArrayFeatureExtractor", (*inputs, ((2,), I64)))
        yield case("ArrayFeatureExtractor", (*inputs, ((1, 2), I64)))
    yield case("ArrayFeatureExtractor", (((2, ROWS, 4), F32), ((3,), I64)))
    for shape in ((3,), (ROWS, 3), (2, ROWS, 3)):
        yield case("Binarizer", ((shape, F32),), threshold=0.5)
        yield case("Scaler", ((shape, F32),), offset=[0.5] * 1, scale=[2.0] * 1)
        for dtype, kind in ((F32, "float"), (I64, "int64")):
            value = [1.0] if kind == "float" else [1]
            name = {"float": "floats", "int64": "int64s"}[kind]
            replaced = {f"replaced_value_{kind}": value[0]}
            yield case("Imputer", ((shape, dtype),), **{f"imputed_value_{name}": value}, **replaced)
        for dtype in (TEXT, I64):
            names = {"cats_strings": ["s0", "s1", "s2"], "cats_int64s": [0, 1, 2]}
            default = {"default_string": "?", "default_int64": -1}
            yield case("CategoryMapper", ((shape, dtype),), **names, **default)
    for inputs in tables(F32, F64, I32, I64):
        yield case("Scaler", inputs, offset=[0.5, 0.1, 0.2], scale=[2.0, 1.0, 1.0])
        for norm in ("MAX", "L1", "L2"):
            yield case("Normalizer", inputs, norm=norm)
        yield case("FeatureVectorizer", inputs, inputdimensions=[3])
        yield case("FeatureVectorizer", inputs * 2, inputdimensions=[3, 3])
        yield case("FeatureVectorizer", inputs, inputdimensions=[2])
        yield case("LinearRegressor", inputs, coefficients=[1.0] * 3, intercepts=[0.5])
        yield case("LinearRegressor", inputs, coefficients=[1.0] * 6, targets=2)
        for targets in (1, 2):
            yield case("TreeEnsembleRegressor", inputs, n_targets=targets, **tree(targets))
        svm = {"kernel_type": "RBF", "kernel_params": [0.5, 0.0, 3.0], "n_supports": 2}
        vectors = {"support_vectors": [0.1] * 6, "coefficients": [1.0, 0.5], "rho": [0.1]}
        yield case("SVMRegressor", inputs, **svm, **vectors)
        linear = {"kernel_type": "LINEAR", "kernel_params": [0.5, 0.0, 3.0]}
        yield case("SVMRegressor", inputs, coefficients=[1.0] * 3, rho=[0.1], **linear)
    yield from classifier_cases()
    yield from encoder_cases()


def classifier_cases():
    for inputs, strings in itertools.product(tables(F32, I64), (True, False)):
        for classes, post in itertools.product((2, 4), POST):
            yield case(
                "LinearClassifier",
                inputs,
                coefficients=[1.0] * (3 * classes),
                intercepts=[0.1] * classes,
                post_transform=post,
                **labels(classes, strings=strings),
            )
            yield case(
                "TreeEnsembleClassifier",
                inputs,
                post_transform=post,
                **tree(classes, classes=classes),
                **labels(classes, strings=strings, integers="classlabels_int64s"),
            )
            for has_probabilities in (True, False):
                yield case(
                    "SVMClassifier",
                    inputs,
                    **svm_classifier(
                        classes, strings=strings, probabilities=has_probabilities, post=post
                    ),
                )
        yield case(
            "LinearClassifier",
            inputs,
            coefficients=[1.0] * 3,
            intercepts=[0.1],
            **labels(2, strings=strings),
        )
        yield case(
            "TreeEnsembleClassifier",
            inputs,
            **tree(1, classes=2),
            **labels(2, strings=strings, integers="classlabels_int64s"),
        )
        for classes in (2, 4):
            yield case(
                "SVMClassifier",
                inputs,
                kernel_type="LINEAR",
                kernel_params=[0.5, 0.0, 3.0],
                coefficients=[1.0] * (3 * classes),
                rho=[0.1],
                **labels(classes, strings=strings),
            )
        yield case("SVMClassifier", inputs, **svm_classifier(1, strings=strings))
        yield case(
            "LinearClassifier",
            inputs,
            coefficients=[1.0] * 6,
            intercepts=[0.1, 0.2],
            **labels(3, strings=strings),
        )


def encoder_cases():
    names, numbers, reals = ["s0", "s1", "s2"], [0, 1, 2], [0.0, 1.0, 2.0]
    kinds = {"strings": (names, TEXT), "int64s": (numbers, I64), "floats": (reals, F32)}
    for shape in ((3,), (ROWS, 3), (2, ROWS, 3)):
        for (key, (keys, dtype)), (value, (results, _)) in itertools.product(
            kinds.items(), repeat=2
        ):
            attributes = {f"keys_{key}": keys, f"values_{value}": results}
            yield case("LabelEncoder", ((shape, dtype),), **attributes)
        for dtype in (TEXT, I64):
            yield case("LabelEncoder", ((shape, dtype),), version=1, classes_strings=names)
        tensor = numpy_helper.from_array
        for keys, results in (
            (np.array([0, 1, 2], I64), np.array([0.5, 1, 2], F32)),
            (np.array([0, 1, 2], F64), np.array([0, 1, 2], I64)),
            (np.array([0, 1, 2], I64), np.array([0, 1, 2], np.int16)),
            (np.array(["s0", "s1"], object), np.array([0, 1], np.int16)),
        ):
            default = np.zeros(1, results.dtype)
            yield case(
                "LabelEncoder",
                ((shape, TEXT if keys.dtype == object else keys.dtype.type),),
                version=4,
                keys_tensor=tensor(keys),
                values_tensor=tensor(results),
                default_tensor=tensor(default),
            )
        yield case("OneHotEncoder", ((shape, TEXT),), cats_strings=names, zeros=1)
        for dtype in (I64, F32, F64, I32):
            yield case("OneHotEncoder", ((shape, dtype),), cats_int64s=[*numbers, 7], zeros=1)
    for inputs, dtype in ((each, each[0][1]) for each in tables(F32, F64)):
        for targets in (1, 2):
            yield case("TreeEnsemble", inputs, version=5, **tree_5(targets, dtype))


def tree_5(n_targets, dtype):
    tensor = numpy_helper.from_array
    return {
        "n_targets": n_targets,
        "tree_roots": [0],
        "nodes_featureids": [0],
        "nodes_splits": tensor(np.array([0.5], dtype)),
        "nodes_modes": tensor(np.array([0], np.uint8)),
        "nodes_truenodeids": [0],
        "nodes_trueleafs": [1],
        "nodes_falsenodeids": [1],
        "nodes_falseleafs": [1],
        "leaf_targetids": [0, n_targets - 1],
        "leaf_weights": tensor(np.array([1.0, 2.0], dtype)),
    }


def proto_of(op_type, version, inputs, attributes):
    """Return a model of the node alone, which declares no types of its outputs."""
    names = [f"x{i}" for i in range(len(inputs))]
    outputs = ["y", "z"] if op_type.endswith("Classifier") else ["y"]
    node = helper.make_node(op_type, names, outputs, domain=ML, **attributes)
    elements = {TEXT: TensorProto.STRING}
    types = [
        elements.get(dtype) or helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        for _, dtype in inputs
    ]
    graph = helper.make_graph(
        [node],
        "ml",
        [
            helper.make_tensor_value_info(name, kind, [f"d{i}" for i in range(len(shape))])
            for name, kind, (shape, _) in zip(names, types, inputs, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    if op_type == "ArrayFeatureExtractor":
        del graph.input[1]
        indices = np.zeros(inputs[1][0], np.int64)
        graph.initializer.append(numpy_helper.from_array(indices, "x1"))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(ML, version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def feeds_of(op_type, inputs):
    fed = inputs[:1] if op_type == "ArrayFeatureExtractor" else inputs
    return {f"x{i}": values(shape, dtype) for i, (shape, dtype) in enumerate(fed)}


def session_of(proto):
    """Return a session; None for a reason in `REFUSED`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options)
    except Exception as error:
        if re.search(REFUSED, str(error)):
            return None
        raise


REFUSED = "NOT_IMPLEMENTED|expected to have rank 2"
"""Reasons of ONNX Runtime for which a case is left out: dtypes without kernel, vectors of trees."""
COMPARED = {
    "ArrayFeatureExtractor": 21,
    "Binarizer": 3,
    "CategoryMapper": 6,
    "FeatureVectorizer": 24,
    "Imputer": 6,
    "LabelEncoder": 42,
    "LinearClassifier": 64,
    "LinearRegressor": 4,
    "Normalizer": 24,
    "OneHotEncoder": 12,
    "SVMClassifier": 120,
    "SVMRegressor": 4,
    "Scaler": 11,
    "TreeEnsemble": 4,
    "TreeEnsembleClassifier": 28,
    "TreeEnsembleRegressor": 4,
}
"""Operator to the number of cases that ONNX Runtime runs."""


def sessions(op_type):
    """Yield each case that ONNX Runtime has a kernel for: its inputs, its model, its session."""
    for name, version, inputs, attributes in ml_cases():
        if name != op_type:
            continue
        proto = proto_of(name, version, inputs, attributes)
        session = session_of(proto)
        if session is not None:
            yield inputs, proto, session


@pytest.mark.parametrize("op_type", COMPARED)
def test_shapes_and_dtypes_equal_those_of_a_run(op_type):
    compared = 0
    for inputs, proto, session in sessions(op_type):
        results = session.run(None, feeds_of(op_type, inputs))
        facts = GraphFacts(load_onnx(proto))
        shapes = {name: value.shape for name, value in feeds_of(op_type, inputs).items()}
        found = infer_shapes(facts, shapes)
        for output, result in zip(facts.outputs, results, strict=True):
            given = (inputs, str(proto.graph.node[0])[-400:], output)
            assert (found[output].shape, found[output].dtype) == (result.shape, result.dtype), given
        compared += 1
    assert compared == COMPARED[op_type]


def is_known_bad(proto):
    (each,) = proto.graph.node
    opsets = {each.domain: each.version for each in proto.opset_import}
    return known_bad_kernel(each, {}, {}, opsets) is not None


@pytest.mark.parametrize("op_type", COMPARED)
def test_rows_that_are_proven_independent_are(op_type):
    for inputs, proto, session in sessions(op_type):
        feeds = feeds_of(op_type, inputs)
        cut = {name for name, value in feeds.items() if value.ndim > 1 and value.shape[0] == ROWS}
        if not cut:
            continue
        model = load_onnx(proto)
        names = tuple(spec.name for spec in model.outputs)
        batch = find_batch(GraphFacts(model), names, {k: v.shape for k, v in feeds.items()})
        assert not batch.blockers, (inputs, batch.blockers)
        whole = session.run(None, feeds)
        for name, result in zip(names, whole, strict=True):
            assert batch.output_axes[name] == 0
            assert batch.sizes[name] == (1, *result.shape[1:])
        halves = [
            session.run(None, {k: v[part] if k in cut else v for k, v in feeds.items()})
            for part in (slice(0, 2), slice(2, None))
        ]
        for result, first, second in zip(whole, *halves, strict=True):
            pieces = np.concatenate([first, second])
            assert pieces.shape == result.shape
            if not is_known_bad(proto):  # kernels that read memory that they never wrote
                np.testing.assert_array_equal(pieces, result)


MAPS = {"s0": 1.0, "s2": 3.0}
INTEGERS = {0: 1.0, 2: 3.0}


@pytest.mark.parametrize(
    ("op_type", "attributes", "given", "shape"),
    [
        ("DictVectorizer", {"string_vocabulary": ["s0", "s1", "s2"]}, MAPS, (1, 3)),
        ("DictVectorizer", {"int64_vocabulary": [0, 1, 2, 3]}, INTEGERS, (1, 4)),
        ("CastMap", {"cast_to": "TO_FLOAT"}, INTEGERS, (1, None)),
        ("CastMap", {"cast_to": "TO_INT64"}, INTEGERS, (1, None)),
        ("CastMap", {"cast_to": "TO_STRING"}, INTEGERS, (1, None)),
        ("CastMap", {"cast_to": "TO_FLOAT", "map_form": "SPARSE", "max_map": 5}, INTEGERS, (1, 5)),
    ],
)
def test_vectors_of_maps_are_one_row(op_type, attributes, given, shape):
    key = TensorProto.STRING if given is MAPS else TensorProto.INT64
    scalar = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    proto = proto_of(op_type, 1, ((("N",), F32),), attributes)
    proto.graph.input[0].type.CopyFrom(helper.make_map_type_proto(key, scalar))
    (result,) = session_of(proto).run(None, {"x0": given})
    spec = infer_shapes(GraphFacts(load_onnx(proto)))["y"]
    assert (spec.shape, spec.dtype) == (shape, result.dtype)
    assert result.ndim == len(shape)
    assert all(size in (None, own) for size, own in zip(shape, result.shape, strict=True))


@pytest.mark.parametrize("op_type", ["LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"])
def test_scores_have_their_rank_where_that_of_the_input_is_unknown(op_type):
    _, proto, _ = next(iter(sessions(op_type)))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    found = infer_shapes(GraphFacts(load_onnx(proto)))
    assert (found["y"].rank, found["z"].rank) == (1, 2)


@pytest.mark.parametrize("declared", [["N"], [1], ["N", "k"], ["N", 7], ["N", 1, 1], []])
def test_a_regressor_has_the_shape_of_its_kernel_whatever_is_declared(declared):
    attributes = {"n_targets": 1, **tree(1)}
    proto = proto_of("TreeEnsembleRegressor", 1, (((ROWS, 3), F32),), attributes)
    kind = helper.make_tensor_value_info("y", TensorProto.FLOAT, declared)
    proto.graph.output[0].CopyFrom(kind)
    found = infer_shapes(GraphFacts(load_onnx(proto)), {"x0": (ROWS, 3)})
    assert found["y"].shape == (ROWS, 1)


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("name", ["LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"])
def test_classifiers_that_no_kernel_runs_rightly_are_refused_by_name(name, strings):
    integers = "classlabels_int64s" if name == "TreeEnsembleClassifier" else "classlabels_ints"
    given = {
        "LinearClassifier": {"coefficients": [0.1] * 3, "intercepts": [0.1]},
        "SVMClassifier": svm_classifier(2, strings=strings),
        "TreeEnsembleClassifier": tree(1, classes=1),
    }[name]
    inputs = (((ROWS, 3), F32),)
    two = {**given, **labels(2, strings=strings, integers=integers)}
    one = {**given, **labels(1, strings=strings, integers=integers)}
    if name == "SVMClassifier":
        one = svm_classifier(1, strings=strings)
    cases = [({**two, "post_transform": "PROBIT"}, True), (two, False)]
    if name != "LinearClassifier":
        cases.append((one, True))
    for attributes, is_bad in cases:
        proto = proto_of(name, 1, inputs, attributes)
        assert is_known_bad(proto) is is_bad
        model = dx.load(proto)
        if is_bad:
            with pytest.raises(dx.ModelError) as caught:
                model.predict(np.ones((5, 3), np.float32))
            assert name in caught.value.node
        else:
            assert len(model.predict(np.ones((5, 3), np.float32))["y"]) == 5
