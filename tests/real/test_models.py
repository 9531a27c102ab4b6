"""Trained models: whole bit-equal to ONNX Runtime, cut within a tolerance, lazy like eager."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
import numpy as np
import onnxruntime
import pytest
from PIL import Image

import dask_onnx as dx
from dask_onnx.analysis.batch import input_axes

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Case:
    """A model, an input, and the tolerance of a cut."""

    file: str
    atol: float
    """Absolute tolerance: observed effect of cuts inside patterns that ORT fuses, with margin."""
    feeds: Any = field(repr=False)

    def __str__(self) -> str:
        return self.file.removesuffix(".onnx")


def rng():
    return np.random.default_rng(0)


def windows(asset) -> np.ndarray:
    """Return three windows of a page as PP-OCR input: float32, shape (3, 3, 160, 160)."""
    page = np.asarray(Image.open(asset("page.png")).convert("RGB"))
    cut = np.stack([page[:160, x : x + 160] for x in (0, 96, 192)])
    return np.ascontiguousarray(((cut / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)).astype("f4")


def characters(asset):
    return {
        "input_1": rng().integers(0, 178, (12, 21)).astype("f4"),
        "input_2": rng().integers(0, 12, (12, 21)).astype("f4"),
    }


def tokens(asset):
    return {
        "input_ids": rng().integers(999, 20000, (5, 16)),
        "attention_mask": (np.arange(16) < np.array([[16], [9], [16], [4], [12]])).astype("i8"),
        "token_type_ids": np.zeros((5, 16), "i8"),
    }


CASES = [
    Case("deepcut.onnx", 1e-6, characters),
    Case(
        "oskut_deepcut.onnx",
        1e-6,
        lambda asset: dict(zip(("inputs", "inputs_1"), characters(asset).values(), strict=True)),
    ),
    Case("det.onnx", 1e-4, lambda asset: {"x": windows(asset)}),
    Case("cls.onnx", 1e-5, lambda asset: {"x": windows(asset)[:, :, :48, :]}),
    Case("rec.onnx", 1e-4, lambda asset: {"x": windows(asset)[:, :, :48, :]}),
    Case("magika.onnx", 1e-6, lambda asset: {"bytes": rng().integers(0, 257, (5, 2048), "i4")}),
    Case("minilm.onnx", 1e-4, tokens),
    Case(
        "silero_vad_op15.onnx",
        1e-6,
        lambda asset: {
            "input": rng().standard_normal((4, 576)).astype("f4"),
            "state": np.zeros((2, 4, 128), "f4"),
            "sr": np.array(16000),
        },
    ),
]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture
def model(case, asset):
    return dx.load(asset(case.file))


@pytest.fixture
def feeds(case, asset):
    return case.feeds(asset)


def run_onnx(path, feeds, threads=0):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [out.name for out in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def test_a_whole_model_is_bit_equal_to_onnxruntime(case, model, feeds, asset):
    expected = run_onnx(asset(case.file), feeds)
    found = model.predict(feeds, outputs=list(expected), batch_size=None)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_runs_of_the_best_size_stay_within_the_tolerance(case, model, feeds, asset):
    expected = run_onnx(asset(case.file), feeds)
    found = model.predict(feeds, outputs=list(expected))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=case.atol)


@pytest.mark.parametrize("plan", ["fused 2", "fused 5", "per_node"])
def test_a_cut_model_stays_within_its_tolerance(case, model, feeds, asset, plan):
    expected = run_onnx(asset(case.file), feeds)
    strategy, _, n_stages = plan.partition(" ")
    made = model.plan(strategy, n_stages=int(n_stages) if n_stages else None)
    if n_stages:
        assert len(made.stages) == int(n_stages)
    found = model.predict(feeds, outputs=list(expected), plan=made)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=case.atol)


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("strategy", ["whole", "fused"])
def test_a_lazy_result_has_the_predicted_metadata(case, model, feeds, asset, strategy, batch_size):
    expected = run_onnx(asset(case.file), feeds)
    axes, _ = input_axes(model._onnx)
    lazy = {
        name: array
        if (axis := axes[name]) is None
        else da.from_array(array, chunks=tuple(2 if i == axis else -1 for i in range(array.ndim)))
        for name, array in feeds.items()
    }
    plan = model.plan(strategy, n_stages=3 if strategy == "fused" else None)
    found = model.predict(lazy, outputs=list(expected), plan=plan, batch_size=batch_size)
    (computed,) = dask.compute(found)
    for name, array in expected.items():
        assert computed[name].dtype == found[name].dtype == array.dtype
        known = [(a, b) for a, b in zip(found[name].shape, array.shape, strict=True) if a == a]
        assert all(a == b for a, b in known)
        np.testing.assert_allclose(computed[name], array, rtol=0, atol=max(case.atol, 1e-6))


def test_float_models_keep_rows_apart(model):
    assert model.analysis.batch.dependent == ()
    assert model.analysis.batch.random == ()


def test_the_detector_finds_the_text_of_a_page(asset):
    found = dx.load(asset("det.onnx")).predict(windows(asset))
    assert (found > 0.3).mean() > 0.02


def test_a_dynamically_quantised_model_names_the_nodes_that_couple_rows(asset):
    model = dx.load(asset("tashkeel.onnx"))
    dependent = model.analysis.batch.dependent
    assert "/lstm/LSTM_quant" in dependent
    assert any("QuantizeLinear" in name for name in dependent)


def test_a_dynamically_quantised_model_is_bit_equal_at_the_same_thread_count(asset):
    # ORT's quantised LSTM gives other results with another number of threads.
    x = {"input_ids": rng().integers(0, 20, (3, 12))}
    model = dx.load(asset("tashkeel.onnx"))
    expected = run_onnx(asset("tashkeel.onnx"), x, threads=1)["logits"]
    plan = model.plan("whole", session=dx.SessionSpec(optimization="all"))
    np.testing.assert_array_equal(
        model.predict(dask.delayed(x["input_ids"]), plan=plan).compute(), expected
    )
    cut = model.predict(x, plan=model.plan("per_node"))
    np.testing.assert_allclose(cut, expected, atol=1e-4)


def test_a_model_with_nested_bodies_runs_under_every_strategy(asset):
    path = asset("silero_vad.onnx")
    feeds = {
        "input": rng().standard_normal((2, 576)).astype("f4"),
        "state": np.zeros((2, 2, 128), "f4"),
        "sr": np.array(16000),
    }
    expected, model = run_onnx(path, feeds), dx.load(path)
    assert len(model._onnx.proto) < model._onnx.parameter_bytes / 10
    for strategy in ("whole", "fused", "branches", "per_node"):
        found = model.predict(feeds, plan=model.plan(strategy))
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_the_wide_model_is_wide(asset):
    analysis = dx.load(asset("deepcut.onnx")).analysis
    assert analysis.parallel_branches == 12
    assert analysis.parallelism > 3
    assert dx.load(asset("oskut_deepcut.onnx")).analysis.parallel_branches == 186


def test_costs_of_a_known_model_are_about_right(asset):
    # PP-OCRv4's mobile detector: 1.17 million parameters; 1.3 GFLOP at 320 x 320.
    model = dx.load(asset("det.onnx"))
    analysis = model.analyse({"x": (1, 3, 320, 320)})
    assert analysis.parameters == 1_171_841
    assert analysis.flops == pytest.approx(1.2e9, rel=0.1)
