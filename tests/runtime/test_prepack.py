from __future__ import annotations

import errno
import json
import stat

import dask.config
import numpy as np
import pytest
from builders import dense_model, make_model, node, run_onnx, value, weights

import dask_onnx as dx
from dask_onnx.core import subprocesses
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime import prepack
from dask_onnx.runtime.session_cache import SESSION_CACHE
from dask_onnx.store.weight_store import Store

X = np.random.default_rng(1).standard_normal((4, 512)).astype(np.float32)


def wide_model(seed: int = 0):
    """Return a model from x (N, 512) to y (N, 512), with 2 MB of weights that ORT packs."""
    return make_model(
        [node("MatMul", "x W", "h"), node("Relu", "h", "r"), node("MatMul", "r V", "y")],
        [value("x", ["N", 512])],
        [value("y", ["N", 512])],
        {"W": weights(512, 512, seed=seed), "V": weights(512, 512, seed=seed + 1)},
    )


@pytest.fixture
def store(tmp_path):
    settings = {
        "onnx.store.directory": str(tmp_path / "own"),
        "onnx.session.prepack-min-bytes": 2**20,
    }
    with dask.config.set(settings):
        yield Store()
        SESSION_CACHE.clear()


def notes(store):
    return list(store.root.glob("prepacked/*/*/note.json"))


@pytest.fixture
def never_slower(monkeypatch):
    """Accept every measured time: two megabytes load in a millisecond either way."""
    monkeypatch.setattr(prepack, "_MAX_LOAD_RATIO", 100)


def test_packed_weights_give_the_same_numbers(store, never_slower):
    source = wide_model()
    model = dx.load(source)
    with dask.config.set({"onnx.session.prepack-min-bytes": None}):
        plain = model(X)
    assert notes(store) == []
    SESSION_CACHE.clear()
    np.testing.assert_array_equal(model(X), plain)
    np.testing.assert_allclose(plain, run_onnx(source, {"x": X})[0], rtol=1e-5, atol=1e-4)
    (note,) = notes(store)
    found = json.loads(note.read_text())
    assert found["use"] and found["packed_share"] > 0.9
    assert found["plain_seconds"] > 0 and found["saved_seconds"] > 0
    assert stat.S_IMODE(note.parent.stat().st_mode) == 0o700


def test_weights_are_packed_once_per_host(store, never_slower, monkeypatch):
    model = dx.load(wide_model())
    model(X)
    SESSION_CACHE.clear()
    monkeypatch.setattr(prepack, "_make", lambda *_: pytest.fail("packed again"))
    model(X)


def test_sessions_share_packed_weights_if_only_threads_differ(store, never_slower):
    model = dx.load(wide_model())
    for spec in (
        SessionSpec(intra_op_num_threads=1),
        SessionSpec(intra_op_num_threads=2),
        SessionSpec(optimization="basic"),
    ):
        model.predict(X, plan=model.plan(session=spec))
    assert len(notes(store)) == 2


def test_a_flipped_bit_in_packed_weights_is_found(store, never_slower):
    model = dx.load(wide_model())
    expected = model(X)
    SESSION_CACHE.clear()
    (note,) = notes(store)
    path = note.parent / prepack.WEIGHTS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    np.testing.assert_array_equal(model(X), expected)
    assert path.read_bytes() != bytes(data)


def test_weights_that_do_not_pack_are_recorded_and_not_saved(store):
    model = make_model(
        [node("Add", "x B", "y")],
        [value("x", ["N", 512])],
        [value("y", ["N", 512])],
        {"B": weights(600, 512)[:1] + np.zeros((600, 512), np.float32)},
    )
    dx.load(model)(np.zeros((600, 512), "f4"))
    (note,) = notes(store)
    found = json.loads(note.read_text())
    assert not found["use"] and "next to nothing" in found["reason"]
    assert [path.name for path in note.parent.iterdir()] == ["note.json"]


def test_a_failed_subprocess_does_not_stop_the_stage(store, monkeypatch):
    monkeypatch.setattr(subprocesses.sys, "executable", "/bin/false")
    source = wide_model()
    np.testing.assert_allclose(
        dx.load(source)(X), run_onnx(source, {"x": X})[0], rtol=1e-5, atol=1e-4
    )
    (note,) = notes(store)
    found = json.loads(note.read_text())
    assert not found["use"] and "exit code 1" in found["reason"] and found["failed_at"] > 0


def test_small_models_are_not_packed(store):
    dx.load(dense_model())(np.zeros((1, 8), "f4"))
    assert notes(store) == []


@pytest.mark.parametrize("keeps_some", [False, True])
def test_weights_that_ort_computes_beforehand_are_packed_once(store, monkeypatch, keeps_some):
    """ORT reduces W to one number per column; with `keeps_some`, V stays as it is."""
    monkeypatch.setattr(prepack.log, "warning", lambda *_: pytest.fail("a warning"))
    nodes = [node("ReduceSum", "W axes", "s", keepdims=0), node("Add", "x s", "t")]
    weights_of = {"W": weights(1024, 512), "axes": np.array([0])}
    if keeps_some:
        nodes.append(node("MatMul", "t V", "y"))
        weights_of["V"] = weights(512, 512)
    else:
        nodes.append(node("Relu", "t", "y"))
    source = make_model(nodes, [value("x", ["N", 512])], [value("y", ["N", 512])], weights_of)
    model = dx.load(source)
    found = model(X)
    np.testing.assert_allclose(found, run_onnx(source, {"x": X})[0], rtol=1e-3, atol=1e-3)
    assert len(notes(store)) == 1
    SESSION_CACHE.clear()
    monkeypatch.setattr(prepack, "_make", lambda *_: pytest.fail("packed again"))
    np.testing.assert_array_equal(model(X), found)


def test_packing_on_a_full_disk_is_not_tried_at_each_session(store, monkeypatch):
    calls, warnings = [], []
    monkeypatch.setattr(prepack.log, "warning", lambda *arguments: warnings.append(arguments))

    def full(*arguments):
        calls.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepack, "_make", full)
    model = dx.load(wide_model(seed=7))
    expected = model(X)
    SESSION_CACHE.clear()
    np.testing.assert_array_equal(model(X), expected)
    assert len(calls) == len(warnings) == 1
