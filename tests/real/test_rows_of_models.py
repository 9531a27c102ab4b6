"""Trained models: independent rows are proven independent, coupled rows are reported."""

from __future__ import annotations

import numpy as np
import pytest

import dask_onnx as dx

PROVEN = {
    "cls": {"x": 0},
    "deepcut": {"input_1": 0, "input_2": 0},
    "det": {"x": 0},
    "magika": {"bytes": 0},
    "minilm": {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0},
    "oskut_deepcut": {"inputs": 0, "inputs_1": 0},
    "rec": {"x": 0},
    "silero_vad": {"input": 0, "state": 1, "sr": None},
    "silero_vad_op15": {"input": 0, "state": 1, "sr": None},
}


@pytest.mark.real
@pytest.mark.parametrize("name", PROVEN)
def test_independent_rows_of_real_models_are_proven(asset, name):
    batch = dx.load(asset(f"{name}.onnx")).analysis.batch
    assert [str(blocker) for blocker in batch.blockers] == []
    assert batch.input_axes == PROVEN[name]
    assert batch.coupled == ()


@pytest.mark.real
@pytest.mark.parametrize("name", ["rawi", "tashkeel"])
def test_dynamically_quantised_models_are_coupled_and_not_refused(asset, name):
    batch = dx.load(asset(f"{name}.onnx")).analysis.batch
    assert batch.is_proven and batch.coupled


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


SAMPLES = {
    "minilm": {
        "input_ids": np.arange(100, 148).reshape(4, 12),
        "attention_mask": np.tril(np.ones((4, 12), np.int64), 8),
        "token_type_ids": np.zeros((4, 12), np.int64),
    },
    "det": {"x": draw(3, 3, 64, 96)},
    "silero_vad": {"input": draw(4, 576), "state": draw(2, 4, 128), "sr": np.array(16000)},
}


@pytest.mark.real
@pytest.mark.parametrize("name", SAMPLES)
def test_claims_about_real_models_hold_in_runs(asset, name):
    found = dx.verify_axes(dx.load(asset(f"{name}.onnx")), SAMPLES[name])
    assert found.wrong == ()
    assert any(check.claimed == "independent" and check.is_equal for check in found.checks)
