"""Untrusted models are tried in a subprocess first, once per host."""

from __future__ import annotations

import io
import json
import os
import signal
import time

import dask
import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, value
from click.testing import CliRunner

import dask_onnx as dx
from dask_onnx.api import model_trials
from dask_onnx.cli import main
from dask_onnx.core.errors import ModelError
from dask_onnx.store import trial_records
from dask_onnx.store.trial_records import TrialRecord, read_trial, write_trial
from dask_onnx.store.weight_store import Store

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)


@pytest.fixture
def settings(tmp_path):
    """Give the test a store and limits of its own."""
    limits = {"onnx.untrusted.seconds": 60, "onnx.store.directory": str(tmp_path / "store")}
    with dask.config.set(limits):
        yield tmp_path


def crash(*_):
    os.kill(os.getpid(), signal.SIGABRT)


def hang(*_):
    time.sleep(600)


def fill_memory(given, kept, memory_bytes, settings):
    model_trials.resource.setrlimit(model_trials.resource.RLIMIT_DATA, (memory_bytes,) * 2)
    return np.ones(2**36, np.uint8).sum()


def test_an_untrusted_model_is_loaded_after_its_trial(settings):
    path = settings / "m.onnx"
    onnx.save(dense_model(), path)
    model = dx.load(path, untrusted=True)
    np.testing.assert_array_equal(model.predict(X), dx.load(path).predict(X))
    (record,) = (settings / "store" / "trials").iterdir()
    assert json.loads(record.read_text()) == {"refusal": None}


@pytest.mark.parametrize(
    ("act", "seconds"),
    [(crash, 60), (hang, 1), pytest.param(fill_memory, 60, marks=pytest.mark.slow)],
)
def test_a_model_that_crashes_or_never_ends_is_refused(settings, monkeypatch, act, seconds):
    monkeypatch.setattr(model_trials, "_try", act)
    with dask.config.set({"onnx.untrusted.seconds": seconds}):
        with pytest.raises(ModelError) as caught:
            dx.load(dense_model(), untrusted=True)
        assert caught.value.option == "untrusted"
        assert caught.value.numbers["seconds"] == seconds
        assert ("timed out" in caught.value.reason) == (act is hang)
        assert ("bytes" in caught.value.reason) == (act is fill_memory)
        # It is not tried again.
        monkeypatch.setattr(model_trials, "run_in_subprocess", pytest.fail)
        with pytest.raises(ModelError) as again:
            dx.load(dense_model(), untrusted=True)
    assert again.value.reason == caught.value.reason
    assert dx.load(dense_model()).inputs  # the caller may trust it


def test_each_model_is_tried_once(settings, monkeypatch):
    trials = []
    monkeypatch.setattr(model_trials, "run_in_subprocess", lambda *_, **__: trials.append(1))
    path = settings / "m.onnx"
    onnx.save(dense_model(), path)
    for _ in range(2):
        dx.load(path, untrusted=True)
        dx.load(dense_model().SerializeToString(), untrusted=True)
    assert len(trials) == 2  # the file, and the bytes
    onnx.save(dense_model(hidden=33), path)
    dx.load(path, untrusted=True)
    assert len(trials) == 3


DEEP_TEXT = (
    '<ir_version: 8, opset_import: ["": 17]> g (bool c, float[N] x) => (float[N] y) {'
    + "y = If (c) <then_branch = b () => (y) {" * 40_000
    + "y = Relu (x)"
    + "}>" * 40_000
    + "}"
)
"""A text that ends a process: the parser calls itself for each body."""


@pytest.mark.slow
def test_text_is_parsed_in_the_subprocess_first(settings):
    with pytest.raises(ModelError) as caught:
        dx.load(DEEP_TEXT, untrusted=True)
    assert caught.value.option == "untrusted" or "textual" in caught.value.cause


def test_a_file_object_is_read_once(settings, monkeypatch):
    monkeypatch.setattr(model_trials, "run_in_subprocess", lambda *_, **__: None)
    file = io.BytesIO(dense_model().SerializeToString())
    assert dx.load(file, untrusted=True).inputs


def test_a_trusted_model_is_not_tried(settings, monkeypatch):
    monkeypatch.setattr(model_trials, "run_in_subprocess", pytest.fail)
    assert dx.load(dense_model()).inputs


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_raises_its_own_error(settings):
    model = make_model([node("Relu", "gone", "y")], [value("x", [1])], [value("y", [1])])
    with pytest.raises(ModelError) as caught:
        dx.load(model, untrusted=True)
    assert caught.value.input == "gone"


class Ends:
    """Stands for a subprocess that ends with an error; keeps what it was given."""

    def __init__(self, error):
        self.error = error
        self.given = []

    def __call__(self, function, given, *arguments, seconds):
        self.given.append((function, given))
        raise self.error


def test_the_error_of_a_trial_is_that_of_the_model(settings, monkeypatch):
    """Without a subprocess: it raises here what the trial raised there."""
    ends = Ends(ModelError("no", "mend it", input="gone"))
    monkeypatch.setattr(model_trials, "run_in_subprocess", ends)
    with pytest.raises(ModelError) as caught:
        dx.load(dense_model(), untrusted=True)
    assert caught.value is ends.error
    assert not list((settings / "store").glob("trials/*.json"))  # it is tried again


def test_a_trial_without_memory_is_a_refusal_that_tells_the_bytes(settings, monkeypatch):
    monkeypatch.setattr(model_trials, "run_in_subprocess", Ends(MemoryError()))
    with pytest.raises(ModelError) as caught:
        dx.load(dense_model(), untrusted=True)
    assert "bytes" in caught.value.reason
    assert caught.value.numbers["memory_bytes"] > 2**32


def test_text_is_not_parsed_before_its_trial(settings, monkeypatch):
    ends = Ends(ModelError("no", "mend it"))
    monkeypatch.setattr(model_trials, "run_in_subprocess", ends)
    monkeypatch.setattr(onnx.parser, "parse_model", pytest.fail)
    with pytest.raises(ModelError):
        dx.load(DEEP_TEXT, untrusted=True)
    assert ends.given == [(model_trials._try, DEEP_TEXT)]


def test_records_of_trials_are_bounded(settings, monkeypatch):
    monkeypatch.setattr(trial_records, "MAX_RECORDS", 10)
    store = Store()
    for number in range(15):
        write_trial(store, f"{number:064x}", TrialRecord(None))
    assert len(list((store.root / "trials").glob("*.json"))) == 10
    assert read_trial(store, f"{14:064x}") == TrialRecord(None)
    assert read_trial(store, f"{0:064x}") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"refusal": 3}', "\0"])
def test_a_damaged_record_is_no_record(settings, text):
    store = Store()
    write_trial(store, "0" * 64, TrialRecord("it ended"))
    assert read_trial(store, "0" * 64) == TrialRecord("it ended")
    (store.root / "trials" / f"{'0' * 64}.json").write_text(text)
    assert read_trial(store, "0" * 64) is None


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_the_command_line_tries_what_it_has_not_seen(settings, monkeypatch, command):
    trials = []
    monkeypatch.setattr(model_trials, "run_in_subprocess", lambda *_, **__: trials.append(1))
    path = settings / "m.onnx"
    onnx.save(dense_model(), path)
    with dask.config.set({"onnx.untrusted.command-line": True}):
        for arguments, expected in (("--trusted", 0), (None, 1), (None, 1)):
            given = [command, str(path), *([arguments] if arguments else [])]
            result = CliRunner().invoke(main, given)
            assert result.exit_code == 0, result.output
            assert len(trials) == expected
