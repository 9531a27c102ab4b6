"""Journals of runs: a block counts once its data are safe, and a torn line never counts."""

from __future__ import annotations

import contextlib
import errno
import os

import fsspec
import pytest

from dask_onnx.core.errors import InputError, OutputError
from dask_onnx.io import block_journal
from dask_onnx.io.block_journal import BlockJournal, read_log
from dask_onnx.io.run_manifest import RunManifest

MANIFEST = RunManifest("arrays", "0123456789abcdef", {"batch_size": 4}, {"x.npy": [10, "1", "d"]})


@pytest.fixture(params=["disk", "memory"])
def journal(request, tmp_path):
    if request.param == "disk":
        yield BlockJournal(str(tmp_path / ".y.npy.resume"), "run-1")
        return
    yield BlockJournal("memory://journal/y.zarr.resume", "run-1")
    system = fsspec.filesystem("memory")
    if system.exists("/journal"):
        system.rm("/journal", recursive=True)


def test_blocks_and_the_manifest_are_read_back_by_another_journal(journal):
    assert journal.manifest() is None and journal.completed() == {}
    journal.begin(MANIFEST)
    journal.record(3, [10, 2])
    journal.record("000004-000001", [5])
    other = BlockJournal(journal.folder, journal.run)
    assert other.manifest() == MANIFEST
    found = other.completed()
    assert {name: done.counts for name, done in found.items()} == {
        "3": (10, 2),
        "000004-000001": (5,),
    }
    assert not other.is_finishing
    journal.note_finishing()
    assert other.is_finishing
    journal.remove()
    assert other.manifest() is None and other.completed() == {}


def test_a_task_of_an_earlier_run_does_not_record_a_block_of_a_later_one(journal):
    journal.begin(MANIFEST)
    journal.record(0, [1])
    later = BlockJournal(journal.folder, "run-2")
    later.begin(MANIFEST)
    # On a disk there is no place for it any more; an object store has any.
    with contextlib.suppress(OutputError):
        journal.record(1, [1])
    assert later.completed() == {}


def test_a_journal_that_was_removed_is_not_made_anew_by_a_task(tmp_path):
    journal = BlockJournal(str(tmp_path / "j"), "run")
    journal.begin(MANIFEST)
    journal.record(0, [1])
    journal.remove()
    with pytest.raises(OutputError):
        journal.record(1, [1])
    assert list(tmp_path.iterdir()) == []


def log_of(journal, folder):
    (path,) = folder.glob("done.run/*.log")
    return path.read_bytes()


def test_lines_that_are_torn_or_damaged_do_not_count(tmp_path):
    journal = BlockJournal(str(tmp_path), "run")
    journal.begin(MANIFEST)
    for block in range(3):
        journal.record(block, [block])
    content = log_of(journal, tmp_path)
    boot = block_journal._boot()
    assert {done.block for done in read_log(content, boot)} == {"0", "1", "2"}
    for cut in range(len(content)):
        whole = content[:cut].rpartition(b"\n")[0]
        expected = {f.split()[1].decode() for f in whole.split(b"\n") if f.startswith(b"done")}
        assert {done.block for done in read_log(content[:cut], boot)} in (
            expected,
            # The line feed after a whole line may be missing.
            expected | {done.block for done in read_log(content[: cut + 1], boot)},
        )
    for place in range(0, len(content), 7):
        damaged = bytes([*content[:place], content[place] ^ 8, *content[place + 1 :]])
        assert {done.block for done in read_log(damaged, boot)} <= {"0", "1", "2"}


def test_after_a_power_cut_only_flushed_blocks_count(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(block_journal, "flush_files", lambda paths: flushed.append(set(paths)))
    monkeypatch.setattr(block_journal, "_FLUSH_SECONDS", 0.0)
    journal = BlockJournal(str(tmp_path), "run")
    journal.begin(MANIFEST)
    journal.record(0, [1], ["/a"])
    monkeypatch.setattr(block_journal, "_FLUSH_SECONDS", 1e9)
    journal.record(1, [1], ["/b"])
    content = log_of(journal, tmp_path)
    assert flushed == [{"/a"}]
    assert {done.block for done in read_log(content, block_journal._boot())} == {"0", "1"}
    assert {done.block for done in read_log(content, "another boot")} == {"0"}


def test_blocks_whose_data_could_not_be_flushed_do_not_count(tmp_path, monkeypatch):
    def fail(paths):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = BlockJournal(str(tmp_path), "run")
    journal.begin(MANIFEST)
    journal.record(0, [1])
    monkeypatch.setattr(block_journal, "_FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(block_journal, "flush_files", fail)
    with pytest.raises(OutputError) as raised:
        journal.record(1, [1], ["/a"])
    assert raised.value.reason == os.strerror(errno.EIO)
    assert set(journal.completed()) == {"0"}


def test_a_damaged_manifest_is_an_error(journal):
    journal.begin(MANIFEST)
    system = fsspec.filesystem("memory" if "://" in journal.folder else "file")
    path = f"{journal.folder.removeprefix('memory:/')}/manifest.json"
    content = system.cat_file(path)
    for place in range(0, len(content), 13):
        system.pipe_file(path, bytes([*content[:place], content[place] ^ 1, *content[place + 1 :]]))
        with pytest.raises(InputError) as raised:
            journal.manifest()
        assert raised.value.option == "resume"
