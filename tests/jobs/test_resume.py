"""Runs that fail are gone on with: only what is missing is computed, and the bytes are equal."""

from __future__ import annotations

import gzip
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from builders import make_model, node, value, weights
from job_steps import Interrupted, digests, interrupting, predict

import dask_onnx as dx
from dask_onnx.core.errors import Suggestion
from dask_onnx.io import csv_files
from dask_onnx.io.begun_outputs import find_begun
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.output_lock import locked_outputs
from dask_onnx.io.sinks import NpySink
from dask_onnx.io.table_sinks import ParquetSink, TableSink
from dask_onnx.jobs.run_status import run_status

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((60, 8)).astype(np.float32)
BLOCKS = 12


@pytest.fixture
def client(one_thread):
    return one_thread


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    return tmp_path / "x.npy"


def counted(monkeypatch, kind):
    """Names of the blocks that a kind of sink writes from now on."""
    written = []
    name = "write_frame" if kind is not NpySink else "write"
    for each in {kind, *kind.__subclasses__()}:
        if name not in vars(each):
            continue
        real = vars(each)[name]

        def write(self, block, *others, real=real):
            written.append(block)
            return real(self, block, *others)

        monkeypatch.setattr(each, name, write)
    return written


@pytest.mark.parametrize("suffix", [".npy", ".zarr", ".parquet", ".jsonl"])
def test_a_run_that_was_interrupted_goes_on_where_it_was(client, rows, tmp_path, suffix):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"y{suffix}"
    predict(rows, whole, client)
    progress = interrupting(after=20)
    with pytest.raises(Interrupted) as raised:
        predict(rows, cut, client, progress=progress)
    begun = find_begun(str(cut))
    assert 4 <= begun.blocks < BLOCKS and begun.rows == 5 * begun.blocks
    assert not cut.exists() and raised.value.__notes__ == progress.notes
    status = run_status(cut)
    assert (status.state, status.all_blocks, status.all_rows) == ("ended", BLOCKS, 60)
    assert status.rows_left == 60 - status.rows and status.holder is None
    found = predict(rows, cut, client, resume=True)
    assert found.resumed_blocks >= begun.blocks and found.rows == 60
    assert digests(cut) == digests(whole)
    done = run_status(cut)
    assert (done.state, done.rows, done.rows_left, done.blocks_left) == ("complete", 60, 0, 0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"x.npy", whole.name, cut.name}


def test_complete_blocks_are_not_written_again(client, rows, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        predict(rows, tmp_path / "y.npy", client, progress=interrupting(after=20))
    before = set(find_begun(str(tmp_path / "y.npy")).journal.completed())
    written = counted(monkeypatch, NpySink)
    predict(rows, tmp_path / "y.npy", client, resume=True)
    assert sorted(written) == sorted(set(range(BLOCKS)) - set(map(int, before)))


def test_a_new_run_refuses_what_another_has_begun_and_overwrite_removes_it(client, rows, tmp_path):
    target = tmp_path / "y.parquet"
    with pytest.raises(Interrupted):
        predict(rows, target, client, progress=interrupting(after=20))
    with pytest.raises(dx.InputError) as raised:
        predict(rows, target, client)
    assert raised.value.option == "resume"
    assert raised.value.suggestions == (Suggestion("resume", True), Suggestion("overwrite", True))
    assert raised.value.numbers["complete_blocks"] >= 4
    with pytest.raises(dx.InputError) as raised:
        predict(rows, target, client, resume=True, overwrite=True)
    assert raised.value.option == "resume"
    found = predict(rows, target, client, overwrite=True, block_rows=20, batch_size=10)
    assert found.resumed_blocks == 0 and found.blocks == 3
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "y.parquet"}


def other_input(rows):
    np.save(rows, ROWS + 1)
    return {}


def other_model(rows):
    model = make_model(
        [node("MatMul", "x W", "y", "other")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        {"W": weights(8, 8)},
    )
    return {"model": model}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_input, "x.npy has changed"),
        (other_model, "the model is"),
        (lambda _: {"pre": np.abs}, "pre is"),
        (lambda _: {"batch_size": 1}, "batch_size is 1, and was 5"),
    ],
    ids=["input", "model", "pre", "batch_size"],
)
def test_another_model_input_or_option_is_told_before_a_cluster_is_reached(
    client, rows, tmp_path, change, told
):
    with pytest.raises(Interrupted):
        predict(rows, tmp_path / "y.npy", client, progress=interrupting(after=20))
    options = change(rows)
    with pytest.raises(dx.InputError) as raised:
        predict(rows, tmp_path / "y.npy", "tcp://127.0.0.1:9", resume=True, **options)
    assert raised.value.option == "resume" and told in raised.value.reason
    assert find_begun(str(tmp_path / "y.npy")).blocks >= 4


def test_other_blocks_are_refused_and_those_of_the_first_run_taken_over(client, rows, tmp_path):
    with pytest.raises(Interrupted):
        predict(rows, tmp_path / "y.npy", client, progress=interrupting(after=20))
    with pytest.raises(dx.InputError) as raised:
        predict(rows, tmp_path / "y.npy", client, resume=True, block_rows=10)
    assert raised.value.numbers == {"block_rows": 10, "begun_rows": 5}
    found = predict(rows, tmp_path / "y.npy", client, resume=True, block_rows=None)
    assert found.block_rows == 5 and found.blocks == BLOCKS


def test_resuming_nothing_starts_at_the_beginning(client, rows, tmp_path):
    found = predict(rows, tmp_path / "y.npy", client, resume=True)
    assert found.resumed_blocks == 0 and not found.was_complete


@pytest.mark.parametrize("place", ["y.npy", "y.zarr", "y.parquet", "memory"])
def test_nothing_is_done_where_the_output_is_complete_unless_the_run_differs(
    client, rows, tmp_path, memory, place
):
    target = f"{memory}/y.parquet" if place == "memory" else str(tmp_path / place)
    first = predict(rows, target, client)
    before = digests(target)
    again = predict(rows, target, "tcp://127.0.0.1:9", resume=True)
    assert again.was_complete and again.resumed_blocks == again.blocks == first.blocks == BLOCKS
    assert (again.rows, again.block_rows, again.files) == (60, 5, first.files)
    with pytest.raises(dx.InputError) as raised:
        predict(rows, target, client, resume=True, block_rows=10)
    assert raised.value.reason == "block_rows is 10, and was 5"
    other_input(rows)
    with pytest.raises(dx.InputError) as raised:
        predict(rows, target, client, resume=True)
    assert raised.value.option == "resume" and "x.npy has changed" in raised.value.reason
    assert raised.value.suggestions == (Suggestion("overwrite", True),)
    assert digests(target) == before


def test_a_complete_output_that_was_changed_or_comes_from_elsewhere_is_told(client, rows, tmp_path):
    predict(rows, tmp_path / "y.parquet", client)
    next((tmp_path / "y.parquet").glob("part-*")).unlink()
    with pytest.raises(dx.InputError) as raised:
        predict(rows, tmp_path / "y.parquet", client, resume=True)
    assert "has 11 files" in raised.value.reason and "had 12" in raised.value.reason
    assert run_status(tmp_path / "y.parquet").state == "foreign"
    np.save(tmp_path / "z.npy", ROWS)
    with pytest.raises(dx.InputError) as raised:
        predict(rows, tmp_path / "z.npy", client, resume=True)
    assert raised.value.option == "overwrite"
    assert run_status(tmp_path / "z.npy").state == "foreign"
    predict(rows, tmp_path / "z.npy", client, overwrite=True)
    assert run_status(tmp_path / "z.npy").state == "complete"
    np.save(tmp_path / "z.npy", ROWS[:3])
    with pytest.raises(dx.InputError) as raised:
        predict(rows, tmp_path / "z.npy", client, resume=True)
    assert "was changed" in raised.value.reason


def test_an_output_without_a_complete_block_leaves_nothing(client, rows, tmp_path):
    with pytest.raises(Interrupted):
        predict(rows, tmp_path / "y.npy", client, progress=interrupting(after=0))
    begun = find_begun(str(tmp_path / "y.npy"))
    assert begun is None or begun.blocks > 0


def test_data_that_are_gone_are_computed_again(client, rows, tmp_path):
    target = tmp_path / "y.parquet"
    predict(rows, tmp_path / "whole.parquet", client)
    with pytest.raises(Interrupted):
        predict(rows, target, client, progress=interrupting(after=20))
    begun = find_begun(str(target))
    (folder,) = tmp_path.glob(".y.parquet.*.partial")
    next(folder.glob("part-*.parquet")).unlink()
    (folder / ".part-000009-host-1-00000000.partial").touch()
    found = predict(rows, target, client, resume=True)
    assert found.resumed_blocks <= begun.blocks + 1
    assert digests(target) == digests(tmp_path / "whole.parquet")


def test_another_run_does_not_sweep_what_can_be_resumed(client, rows, tmp_path):
    with pytest.raises(Interrupted):
        predict(rows, tmp_path / "y.npy", client, progress=interrupting(after=20))
    before = {path.name for path in tmp_path.iterdir()}
    with locked_outputs([str(tmp_path / "y.npy")]):
        pass
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_run_that_ended_while_outputs_got_their_names_is_completed(
    client, rows, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr("dask_onnx.io.block_journal.BlockJournal.remove", lambda _: None)
        patched.setattr("dask_onnx.io.block_journal.BlockJournal.begin", begin_only)
        predict(rows, tmp_path / "y.npy", client)
    assert (tmp_path / "y.npy").exists() and find_begun(str(tmp_path / "y.npy")).blocks == BLOCKS
    before = digests(tmp_path / "y.npy")
    found = predict(rows, tmp_path / "y.npy", client, resume=True)
    assert found.resumed_blocks == BLOCKS and digests(tmp_path / "y.npy") == before
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "y.npy"}


def begin_only(journal, manifest):
    Path(journal.folder, journal._done).mkdir(parents=True)
    journal._put_manifest(manifest)


@pytest.mark.parametrize("suffix", [".zarr", ".parquet"])
def test_an_object_store_is_resumed_under_its_final_name(client, rows, tmp_path, memory, suffix):
    predict(rows, f"{memory}/whole{suffix}", client)
    target = f"{memory}/y{suffix}"
    with pytest.raises(Interrupted):
        predict(rows, target, client, progress=interrupting(after=20))
    with pytest.raises(dx.InputError) as raised:
        predict(rows, target, client)
    assert raised.value.option == "resume"
    assert predict(rows, target, client, resume=True).resumed_blocks >= 4
    assert digests(target) == digests(f"{memory}/whole{suffix}")
    with pytest.raises(Interrupted):
        predict(rows, target, client, overwrite=True, progress=interrupting(after=20))
    assert digests(target) == digests(f"{memory}/whole{suffix}")
    assert predict(rows, target, client, resume=True).resumed_blocks >= 4
    assert digests(target) == digests(f"{memory}/whole{suffix}")
    names = fsspec.filesystem("memory").ls("/resume", detail=False)
    assert sorted(names) == [f"/resume/whole{suffix}", f"/resume/y{suffix}"]


@pytest.fixture
def table(tmp_path):
    (tmp_path / "x").mkdir()
    frame = pd.DataFrame(ROWS, columns=[f"c{i}" for i in range(8)])
    frame.iloc[7, 2] = np.nan
    for part in range(BLOCKS):
        frame[part * 5 : part * 5 + 5].to_parquet(tmp_path / "x" / f"{part:02d}.parquet")
    return tmp_path / "x"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".csv.gz"])
def test_a_table_and_its_quarantine_go_on(client, table, tmp_path, suffix):
    options = {"block_rows": None, "require_finite": True}
    whole = predict(
        *(table, tmp_path / f"whole{suffix}", client),
        quarantine=tmp_path / "whole-bad.parquet",
        **options,
    )
    options |= {"quarantine": tmp_path / "bad.parquet"}
    with pytest.raises(Interrupted):
        predict(
            *(table, tmp_path / f"y{suffix}", client), progress=interrupting(after=4), **options
        )
    found = predict(table, tmp_path / f"y{suffix}", client, resume=True, **options)
    assert found.resumed_blocks >= 4 and (found.rows, found.bad_rows) == (59, 1)
    assert (whole.rows, whole.bad_rows) == (59, 1)
    assert digests(tmp_path / f"y{suffix}") == digests(tmp_path / f"whole{suffix}")
    assert digests(tmp_path / "bad.parquet") == digests(tmp_path / "whole-bad.parquet")


def test_pieces_of_a_stream_are_not_predicted_again(client, tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 2**17)
    monkeypatch.setattr(csv_files, "_STREAM_BYTES", 2**16)
    lines = [",".join(map(str, row)) for row in RNG.integers(0, 9, (40_000, 8))]
    text = "\n".join([",".join(f"c{i}" for i in range(8)), *lines, ""])
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode(), 1, mtime=0))
    source, options = tmp_path / "x.csv.gz", {"block_rows": None, "batch_size": 4096}
    predict(source, tmp_path / "whole.parquet", client, **options)
    parts = len(list((tmp_path / "whole.parquet").glob("part-*")))
    assert parts > 2
    calls = []

    def fail_late(self, block, frame):
        calls.append(block)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(self, block, frame)

    write = ParquetSink.write_frame
    with monkeypatch.context() as patched:
        patched.setattr(ParquetSink, "write_frame", fail_late)
        with pytest.raises(OSError, match="No space"):
            predict(source, tmp_path / "y.parquet", client, **options)
    written = counted(monkeypatch, TableSink)
    predict(source, tmp_path / "y.parquet", client, resume=True, **options)
    assert len(written) == parts - 2
    assert digests(tmp_path / "y.parquet") == digests(tmp_path / "whole.parquet")


@pytest.mark.parametrize("suffix", [".npy", ".zarr", ".parquet"])
def test_a_disk_that_is_full_from_the_beginning_leaves_nothing(
    client, rows, tmp_path, monkeypatch, suffix
):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BlockJournal, "_put", fail)
    with pytest.raises(dx.OutputError) as raised:
        predict(rows, tmp_path / f"y{suffix}", client)
    assert raised.value.reason == "No space left on device"
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy"}


def test_a_disk_that_is_full_where_the_last_block_is_recorded_loses_no_other_block(
    client, rows, tmp_path, monkeypatch
):
    predict(rows, tmp_path / "whole.npy", client)
    record = BlockJournal.record

    def fail_last(self, block, *others):
        if block == BLOCKS - 1:
            raise dx.OutputError("the disk is full", option="path")
        record(self, block, *others)

    with monkeypatch.context() as patched:
        patched.setattr(BlockJournal, "record", fail_last)
        with pytest.raises(dx.OutputError) as raised:
            predict(rows, tmp_path / "y.npy", client)
    assert raised.value.numbers["complete_blocks"] == BLOCKS - 1
    assert predict(rows, tmp_path / "y.npy", client, resume=True).resumed_blocks == BLOCKS - 1
    assert digests(tmp_path / "y.npy") == digests(tmp_path / "whole.npy")


def test_another_place_for_bad_rows_is_told(client, table, tmp_path):
    options = {"block_rows": None, "require_finite": True}
    bad, other = tmp_path / "bad.parquet", tmp_path / "other.parquet"
    target = tmp_path / "y.parquet"
    with pytest.raises(Interrupted):
        predict(table, target, client, progress=interrupting(4), quarantine=bad, **options)
    with pytest.raises(dx.InputError) as raised:
        predict(table, target, client, resume=True, quarantine=other, **options)
    assert f"{other} is no output of it" in raised.value.reason
    assert f"{bad} was an output too" in raised.value.reason
