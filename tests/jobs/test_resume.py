"""Runs that fail are gone on with: only what is missing is computed, and the bytes are equal."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import tifffile
from builders import dense_model, make_model, node, value, weights
from distributed import Client, LocalCluster
from PIL import Image

import dask_onnx as dx
from dask_onnx.core.errors import Suggestion
from dask_onnx.io import csv_files
from dask_onnx.io.begun_outputs import find_begun
from dask_onnx.io.output_lock import locked_outputs
from dask_onnx.io.sinks import NpySink
from dask_onnx.io.table_sinks import ParquetSink, TableSink
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.run_status import run_status

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((60, 8)).astype(np.float32)
BLOCKS = 12


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    return tmp_path / "x.npy"


@pytest.fixture
def memory():
    yield "memory://resume"
    system = fsspec.filesystem("memory")
    if system.exists("/resume"):
        system.rm("/resume", recursive=True)


class Interrupted(KeyboardInterrupt):
    """The interruption of a test."""


def interrupting(after):
    class Progress(JobProgress):
        notes: list[str] = []  # noqa: RUF012 - a class for one run

        def advanced(self, done, total, unit):
            if done >= after:
                raise Interrupted

        def note(self, message):
            self.notes.append(message)

    return Progress()


def digests(target):
    """Digest of each file of an output by name."""
    system, root = fsspec.url_to_fs(str(target))
    return {
        path.removeprefix(root): hashlib.sha256(system.cat_file(path)).hexdigest()
        for path in system.find(root)
    }


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


def predict(source, target, client, **options):
    options = {"block_rows": 5, "batch_size": 5} | options
    model = options.pop("model", None) or dense_model()
    return dx.predict_files(model, source, target, scheduler=client, retries=0, **options)


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
    assert run_status(cut).state == "complete"
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
    assert predict(rows, tmp_path / "y.npy", client, resume=True).resumed_blocks == 0
    with pytest.raises(dx.InputError) as raised:
        predict(rows, tmp_path / "y.npy", client, resume=True)
    assert raised.value.option == "overwrite"


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
    journal._put("manifest.json", manifest.to_json().encode())


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


@pytest.mark.parametrize("suffix", [".npy", ".zarr", ".tif"])
def test_a_raster_goes_on_with_its_tiles(client, tmp_path, suffix):
    tifffile.imwrite(
        tmp_path / "x.tif", RNG.integers(0, 255, (90, 70)).astype(np.float32), tile=(16, 16)
    )
    model = make_model(
        [node("Conv", "x W", "y", "conv", pads=[1, 1, 1, 1])],
        [value("x", ["N", 1, "H", "W"])],
        [value("y", ["N", 1, "H", "W"])],
        {"W": weights(1, 1, 3, 3)},
    )
    options = {"block_rows": None, "batch_size": "auto", "model": model, "tile": 16}
    whole = predict(tmp_path / "x.tif", tmp_path / f"whole{suffix}", client, **options)
    target = tmp_path / f"y{suffix}"
    with pytest.raises(Interrupted):
        predict(tmp_path / "x.tif", target, client, progress=interrupting(after=4), **options)
    found = predict(tmp_path / "x.tif", target, client, resume=True, **options)
    assert 4 <= found.resumed_blocks < found.blocks == whole.blocks
    assert digests(target) == digests(tmp_path / f"whole{suffix}")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"x.tif", f"whole{suffix}", f"y{suffix}"}


def test_pictures_go_on(client, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(BLOCKS):
        Image.fromarray(RNG.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    model = make_model(
        [node("ReduceMean", "x", "y", "mean", axes=[2, 3], keepdims=0)],
        [value("x", ["N", 3, 8, 8])],
        [value("y", ["N", 3])],
    )
    options = {"block_rows": 1, "batch_size": "auto", "model": model, "image": {"preset": "unit"}}
    predict(folder, tmp_path / "whole.parquet", client, **options)
    target = tmp_path / "y.parquet"
    with pytest.raises(Interrupted):
        predict(folder, target, client, progress=interrupting(after=4), **options)
    found = predict(folder, target, client, resume=True, **options)
    assert found.resumed_blocks >= 4 and found.pictures == BLOCKS and found.rows == BLOCKS
    assert digests(target) == digests(tmp_path / "whole.parquet")
