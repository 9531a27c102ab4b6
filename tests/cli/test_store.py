"""``dask-onnx store``: listing, verifying and cleaning up."""

from __future__ import annotations

import dask.config
import pytest
from builders import dense_model

from dask_onnx.cli import store_command
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store.weight_store import Store


@pytest.fixture
def store(tmp_path):
    """A store with one model, which the commands use."""
    with dask.config.set({"onnx.store.directory": str(tmp_path / "own store")}):
        store = Store()
        store.put(load_onnx(dense_model(hidden=40_000)))
        yield store


@pytest.fixture
def terminal(monkeypatch):
    """Let commands ask questions although the standard input of tests is not a terminal."""
    monkeypatch.setattr(store_command, "_is_terminal", lambda: True)


def tokens(run):
    return [model["token"] for model in run("store", "list", "--json").json()["models"]]


def test_list_names_the_models(run, store):
    result = run("store", "list")
    assert result.code == 0
    assert "dense" in result.out and "1 model," in result.out and str(store.root) in result.out


def test_list_shows_what_is_in_use(run, store):
    (model,) = run("store", "list", "--json").json()["models"]
    assert model["blobs"] == 2 and model["blobs_lacking"] == 0 and not model["in_use"]
    lease = store.lease(model["token"])
    assert run("store", "list", "--json").json()["models"][0]["in_use"]
    assert "in use" in run("store", "list").out
    lease.release()


def test_verify_reads_everything(run, store):
    result = run("store", "verify")
    assert result.code == 0 and "2 blobs" in result.out and "match their digests" in result.out


def test_verify_exits_with_1_after_a_flipped_bit(run, store):
    damaged = next(store.blobs.iterdir())
    data = bytearray(damaged.read_bytes())
    data[0] ^= 1
    damaged.write_bytes(data)
    result = run("store", "verify")
    assert result.code == 1
    assert f"damaged, removed: {damaged.name}" in result.out
    assert run("store", "verify", "--json").json()["damaged"] == []


def test_forget_removes_measurements_and_no_model(run, store):
    store.save_measurement("calibration-abc", {"flops_per_second": 1.0})
    store.save_measurement("rows-abc-1", {"rows": 4})
    assert run("store", "forget", "--yes").out.startswith("2 measurements removed from ")
    assert store.measurement("calibration-abc") is None
    assert run("store", "forget", "--json").json() == {"forgotten": 0}
    assert len(tokens(run)) == 1


def test_forget_asks_with_folder_number_and_bytes(run, store, terminal):
    store.save_measurement("rows-abc-1", {"rows": 4})
    refused = run("store", "forget", input="n\n")
    assert refused.code == 1 and "nothing was changed" in refused.err
    assert store.measurement("rows-abc-1") == {"rows": 4}
    assert refused.out.startswith("Remove 1 measurement, 11 B in ")
    assert str(store.root) in refused.out
    assert run("store", "forget", input="y\n").code == 0
    assert store.measurement("rows-abc-1") is None


def test_prune_asks_with_folder_models_and_bytes(run, store, terminal):
    refused = run("store", "prune", "--all", input="\n")
    assert refused.code == 1 and len(tokens(run)) == 1
    named, question = refused.out.splitlines()[:2]
    assert named.startswith("dense ") and named.endswith("MiB")
    assert question.startswith("Remove 1 model, ") and f"MiB in {store.root}?" in question
    result = run("store", "prune", "--all", input="y\n")
    assert result.code == 0 and "removed 1 model, " in result.out
    assert tokens(run) == []


@pytest.mark.parametrize("arguments", [("prune", "--all"), ("forget",)])
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_without_a_terminal_nothing_is_removed_unless_yes_was_given(run, store, arguments, as_json):
    store.save_measurement("rows-abc-1", {"rows": 4})
    result = run("store", *arguments, *as_json)
    assert result.code == 2
    assert "--yes" in (result.json()["error"]["next_step"] if as_json else result.err)
    assert len(tokens(run)) == 1 and store.measurement("rows-abc-1") == {"rows": 4}
    assert run("store", *arguments, *as_json, "--yes").code == 0


def test_prune_keeps_what_fits(run, store):
    result = run("store", "prune")
    assert result.code == 0 and "removed 0 models, 0 B" in result.out
    assert "removed 1 model, " in run("store", "prune", "--max-bytes", "1MiB", "--yes").out
    assert tokens(run) == []


def test_prune_takes_models_that_were_unused_for_a_time(run, store):
    assert run("store", "prune", "--unused", "1h", "--json").json()["models"] == []
    assert len(run("store", "prune", "--all", "--json", "--yes").json()["models"]) == 1


def test_prune_reports_what_is_kept_in_use(run, store):
    lease = store.lease(load_onnx(dense_model(hidden=40_000)).token)
    assert "1 model in use" in run("store", "prune", "--all").out
    lease.release()


@pytest.mark.parametrize(("option", "name"), [("--max-bytes", "max_bytes"), ("--unused", "unused")])
def test_sizes_and_times_that_cannot_be_parsed_are_bad_input(run, store, option, name):
    result = run("store", "prune", option, "much", "--json")
    assert result.code == 2
    fields = result.json()["error"]["fields"]
    assert fields["option"] == name and fields["reason"]


def test_an_empty_store_is_listed(run, tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path / "none")}):
        assert "0 models" in run("store", "list").out
        assert run("store", "verify").code == 0
        assert run("store", "prune").code == 0
        assert run("store", "forget").code == 0
