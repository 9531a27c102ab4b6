from __future__ import annotations

import dask.config
import pytest
from builders import dense_model

from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.store.weight_store import Store


@pytest.fixture
def store(tmp_path):
    """A store with one model, which the commands see."""
    with dask.config.set({"onnx.store.directory": str(tmp_path / "own store")}):
        store = Store()
        store.put(load_onnx(dense_model(hidden=40_000)))
        yield store


def test_list_names_the_models(run, store):
    result = run("store", "list")
    assert result.code == 0
    assert "dense" in result.out and "1 models" in result.out and str(store.root) in result.out


def test_list_says_what_is_in_use(run, store):
    (entry,) = run("store", "list", "--json").json()["models"]
    assert entry["blobs"] == 2 and entry["blobs_lacking"] == 0 and not entry["in_use"]
    lease = store.lease(entry["token"])
    assert run("store", "list", "--json").json()["models"][0]["in_use"]
    assert "in use" in run("store", "list").out
    lease.release()


def test_verify_reads_everything(run, store):
    result = run("store", "verify")
    assert result.code == 0 and "2 blobs" in result.out and "as their digests say" in result.out


def test_verify_finds_a_flipped_bit_and_says_so_by_its_exit_code(run, store):
    damaged = next(store.blobs.iterdir())
    data = bytearray(damaged.read_bytes())
    data[0] ^= 1
    damaged.write_bytes(data)
    result = run("store", "verify")
    assert result.code == 1
    assert f"damaged, removed: {damaged.name}" in result.out
    assert run("store", "verify", "--json").json()["damaged"] == []


def test_forget_takes_what_was_measured_and_no_model(run, store):
    store.note_measured("calibration-abc", {"flops_per_second": 1.0})
    store.note_measured("rows-abc-1", {"rows": 4})
    assert run("store", "forget").out.startswith("2 measurements forgotten in ")
    assert store.measured("calibration-abc") is None
    assert run("store", "forget", "--json").json() == {"forgotten": 0}
    assert len(run("store", "list", "--json").json()["models"]) == 1


def test_prune_keeps_what_fits(run, store):
    result = run("store", "prune")
    assert result.code == 0 and result.out.startswith("0 B freed")
    assert run("store", "prune", "--max-bytes", "1MiB").out.startswith("removed dense")
    assert run("store", "list", "--json").json()["models"] == []


def test_prune_takes_what_was_not_used_for_long(run, store):
    assert run("store", "prune", "--unused", "1h", "--json").json()["models"] == []
    assert len(run("store", "prune", "--all", "--json").json()["models"]) == 1


def test_prune_says_what_is_kept_in_use(run, store):
    lease = store.lease(load_onnx(dense_model(hidden=40_000)).token)
    assert "1 in use were kept" in run("store", "prune", "--all").out
    lease.release()


@pytest.mark.parametrize("option", ["--max-bytes", "--unused"])
def test_sizes_and_times_that_are_none_are_bad_input(run, store, option):
    result = run("store", "prune", option, "much")
    assert result.code == 2 and "not a size or a time" in result.err


def test_an_empty_store_is_listed(run, tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path / "none")}):
        assert "0 models" in run("store", "list").out
        assert run("store", "verify").code == 0
        assert run("store", "prune").code == 0
