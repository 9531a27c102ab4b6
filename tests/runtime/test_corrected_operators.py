"""Kernels of this package that replace wrong ones of ONNX's reference evaluator."""

from __future__ import annotations

import dask.array as da
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from builders import make_model, node, value, weights
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.core.errors import StageError
from dask_onnx.runtime import corrected_operators
from dask_onnx.runtime.reference import make_evaluator

UNKNOWN_LOCALE = "xx_XX.UTF-8"
"""A locale that no host has, so that ONNX Runtime never builds the node."""


def normalizer(locale=UNKNOWN_LOCALE, **attributes) -> onnx.ModelProto:
    attributes = {"case_change_action": "LOWER", "locale": locale, **attributes}
    return make_model(
        [node("StringNormalizer", "x", "y", "fold", **attributes)],
        [value("x", ["N"], TensorProto.STRING)],
        [value("y", ["M"], TensorProto.STRING)],
    )


@pytest.mark.parametrize(
    ("attributes", "texts", "expected"),
    [
        ({}, ["Café", "", "ÉCOLE", ""], ["café", "", "école", ""]),
        ({}, ["ΣΟΦΟΣ", "\u0130I", "ǅ"], ["σοφοσ", "ii", "ǆ"]),
        ({"case_change_action": "UPPER"}, ["straße", "ﬁ", "ᾳ", "ς"], ["STRAßE", "ﬁ", "ᾼ", "Σ"]),
        ({"case_change_action": "NONE"}, ["Café", ""], ["Café", ""]),
        ({"stopwords": ["THE", "été"]}, ["The", "a", "ÉTÉ", ""], ["a", ""]),
        ({"stopwords": ["the"], "is_case_sensitive": 1}, ["The", "the"], ["the"]),
        ({"stopwords": ["the"], "case_change_action": "NONE"}, ["THE", "A"], ["A"]),
        ({"stopwords": ["the"]}, ["The"], [""]),
    ],
)
def test_texts_keep_accents_and_empty_texts_without_a_locale(attributes, texts, expected):
    model = dx.load(normalizer(**attributes))
    # Onnxruntime builds the node where it changes no letter.
    changes = attributes.get("case_change_action") != "NONE" or "stopwords" in attributes
    assert model._facts.kernels[0].kernel == ("reference" if changes else "onnxruntime")
    assert model.predict(np.array(texts, object)).tolist() == expected


def test_a_normalizer_equals_onnxruntime_in_a_locale_that_every_host_has():
    letters = [chr(code) for code in range(1, 0x1E944) if not 0xD800 <= code < 0xE000]
    for action in ("LOWER", "UPPER"):
        proto = normalizer("C.UTF-8", case_change_action=action)
        x = {"x": np.array(letters, object)}
        (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, x)
        own = dx.load(normalizer(case_change_action=action)).predict(x["x"])
        assert own.tolist() == expected.tolist()


def test_rows_of_a_normalizer_stay_where_they_are_in_every_collection():
    texts = np.array(["Été", "", "B", "", "C"], object)
    expected = ["été", "", "b", "", "c"]
    model = dx.load(normalizer(), rows="independent")
    assert model.predict(texts).tolist() == expected
    assert model.predict(da.from_array(texts, chunks=2)).compute().tolist() == expected
    frame = pd.DataFrame({"x": texts})
    assert model.predict(frame).iloc[:, 0].tolist() == expected


@pytest.mark.parametrize("locale", ["tr_TR.UTF-8", "az_AZ.utf8", "en_US", "ru_RU.KOI8-R"])
def test_letters_of_other_locales_are_refused_with_the_way_to_install_them(locale):
    if _is_installed(locale):
        assert dx.load(normalizer(locale))._facts.kernels[0].kernel == "onnxruntime"
        return
    with pytest.raises(dx.ModelError) as caught:
        dx.load(normalizer(locale)).plan()
    assert caught.value.node == "fold"
    assert locale in caught.value.reason
    assert f"install the locale {locale}" in caught.value.next_step


def _is_installed(locale):
    try:
        onnxruntime.InferenceSession(normalizer(locale).SerializeToString())
    except Exception:  # whatever ONNX Runtime raises
        return False
    return True


@pytest.mark.parametrize("words", [["a", ""], ["a", "a"]])
def test_stop_words_that_onnxruntime_refuses_are_refused(words):
    with pytest.raises(StageError, match="stopwords"):
        make_evaluator(normalizer(stopwords=words), (), "fold")


@pytest.mark.parametrize("shape", [(0,), (2, 1), (1, 1, 1), ()])
def test_shapes_that_onnxruntime_refuses_are_errors(shape):
    run = make_evaluator(normalizer(), (), "fold").run
    with pytest.raises(ValueError, match="takes shape"):
        run(None, {"x": np.full(shape, "a", object)})


def stft(shape, *, onesided=1) -> onnx.ModelProto:
    return make_model(
        [node("STFT", "x step window", "y", onesided=onesided)],
        [value("x", shape)],
        [value("y", None)],
        {"step": np.array(4), "window": np.hanning(8).astype(np.float32)},
    )


@pytest.mark.parametrize(
    ("shape", "data", "onesided"),
    [
        (["N", 32], (5, 32), 0),
        (["N", 32], (5, 32), 1),
        (["N", 32], (1, 32), 1),
        (["N", 32, 1], (5, 32, 1), 1),
        ([1, "T", 1], (1, 32, 1), 1),
        (["N", 32, 2], (3, 32, 2), 0),
    ],
)
def test_spectra_of_signals_equal_onnxruntime(shape, data, onesided):
    proto, x = stft(shape, onesided=onesided), weights(*data)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    model = dx.load(proto)
    np.testing.assert_allclose(model.predict(x), expected, atol=2e-5)
    if shape[0] == "N" and data[0] > 1:
        lazy = model.predict(da.from_array(x, chunks=(2, *data[1:])))
        np.testing.assert_allclose(lazy.compute(), expected, atol=2e-5)


def pool(dtype=TensorProto.DOUBLE, **attributes) -> onnx.ModelProto:
    attributes = {"kernel_shape": [3, 3], **attributes}
    return make_model(
        [node("AveragePool", "x", "y", **attributes)],
        [value("x", ["N", 1, 4, 4], dtype)],
        [value("y", None, dtype)],
        opset=22,
        ir_version=10,
    )


@pytest.mark.parametrize(
    "attributes",
    [{"pads": [1, 1, 1, 1]}, {"ceil_mode": 1, "strides": [3, 3]}, {"auto_pad": "SAME_UPPER"}],
)
def test_means_in_double_precision_equal_those_in_single_with_nan(attributes):
    x = np.arange(32, dtype=np.float64).reshape(2, 1, 4, 4)
    x[1, 0, 0, 0] = np.nan
    single = pool(TensorProto.FLOAT, **attributes).SerializeToString()
    (expected,) = onnxruntime.InferenceSession(single).run(None, {"x": x.astype(np.float32)})
    model = dx.load(pool(**attributes))
    assert model._facts.kernels[0].kernel == "reference"
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "expected"),
    [("ReduceMean", 1), ("ReduceSumSquare", 3000), ("ReduceL1", 3000), ("ReduceL2", 54.77)],
)
def test_long_sums_in_bfloat16_keep_their_size(op, expected):
    proto = make_model(
        [node(op, "x axes", "y", keepdims=0)],
        [value("x", ["N", 3000], TensorProto.BFLOAT16)],
        [value("y", None, TensorProto.BFLOAT16)],
        {"axes": np.array([1])},
        opset=18,
        ir_version=10,
    )
    y = dx.load(proto).predict(np.ones((2, 3000), ml_dtypes.bfloat16))
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2**-7)


BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)


@pytest.mark.parametrize(
    ("op", "opset", "given", "results"),
    [
        ("BatchNormalization", 17, [FLOAT32, FLOAT16, FLOAT16, FLOAT32, FLOAT32], [FLOAT32]),
        ("BatchNormalization", 17, [FLOAT16, FLOAT32, FLOAT32, FLOAT32, FLOAT32], [FLOAT16]),
        ("RMSNormalization", 23, [BFLOAT16, FLOAT32], [FLOAT32]),
        ("RMSNormalization", 23, [FLOAT32, BFLOAT16], [BFLOAT16]),
        ("LayerNormalization", 17, [BFLOAT16, BFLOAT16], [BFLOAT16, FLOAT32, FLOAT32]),
        ("Sum", 13, [FLOAT16, FLOAT16, FLOAT16], [FLOAT16]),
    ],
)
def test_results_on_the_reference_have_the_types_that_the_operator_gives_them(
    op, opset, given, results
):
    names = [f"x{number}" for number in range(len(given))]
    outputs = [f"y{number}" for number in range(len(results))]
    proto = make_model(
        [node(op, " ".join(names), " ".join(outputs))],
        [
            value(name, None, helper.np_dtype_to_tensor_dtype(dtype))
            for name, dtype in zip(names, given, strict=True)
        ],
        [
            value(name, None, helper.np_dtype_to_tensor_dtype(dtype))
            for name, dtype in zip(outputs, results, strict=True)
        ],
        opset=opset,
    )
    rng = np.random.default_rng(0)
    exact = [rng.random((2, 3)), *(rng.random(3) for _ in given[1:])]
    feeds = {n: x.astype(d) for n, x, d in zip(names, exact, given, strict=True)}
    found = make_evaluator(proto, (), op).run(None, feeds)
    assert [each.dtype for each in found] == results
    # As in single precision, from the same rounded inputs.
    plain = [x.astype(np.float32) for x in feeds.values()]
    wide = make_evaluator(in_float32(proto), (), op).run(None, dict(zip(names, plain, strict=True)))
    for own, expected in zip(found, wide, strict=True):
        np.testing.assert_array_equal(own, expected.astype(own.dtype))


def in_float32(proto):
    for each in (*proto.graph.input, *proto.graph.output):
        each.type.tensor_type.elem_type = TensorProto.FLOAT
    return proto


def test_sums_inside_a_body_on_the_reference_are_corrected_too():
    body = helper.make_graph(
        [node("ReduceMean", "x", "mean", keepdims=0)],
        "then",
        [],
        [value("mean", None, TensorProto.BFLOAT16)],
    )
    proto = make_model(
        [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)],
        [value("c", [], TensorProto.BOOL), value("x", [3000], TensorProto.BFLOAT16)],
        [value("y", None, TensorProto.BFLOAT16)],
        opset=18,
        ir_version=10,
    )
    evaluator = make_evaluator(proto, (), "sums")
    ones = np.ones(3000, ml_dtypes.bfloat16)
    assert float(evaluator.run(None, {"c": np.array(True), "x": ones})[0]) == 1


def test_the_callers_kernel_comes_before_a_corrected_one():
    def shout(x, **_):
        return np.array([f"{text}!" for text in x], object)

    model = dx.load(normalizer(), replace={"StringNormalizer": shout})
    assert model.predict(np.array(["a"], object)).tolist() == ["a!"]


def test_explain_says_that_the_kernel_is_this_packages_own():
    text = dx.load(normalizer()).plan().explain()
    assert "dask_onnx's own kernel runs it" in text
    assert set(corrected_operators.CORRECTED_OPERATORS) >= {("", "StringNormalizer"), ("", "STFT")}
