"""Streams of frames as records of a profile: what they counted while it ran."""

from __future__ import annotations

import pytest
from profile_builders import small_profile

from dask_onnx.core import stream_records
from dask_onnx.core.stream_records import StreamRecord, add_stream
from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile, load_profile
from dask_onnx.diagnostics.profiling.profiled_streams import profiled_streams, stream_baseline
from dask_onnx.streams.stream_statistics import StatisticsCounter


@pytest.fixture(autouse=True)
def no_streams(monkeypatch):
    monkeypatch.setattr(stream_records, "_records", type(stream_records._records)(maxlen=8))


def stream(started: float, name: str = "camera") -> tuple[StreamRecord, StatisticsCounter]:
    """Return a stream that is known to this process, and what counts its frames."""
    counter = StatisticsCounter(name)
    record = StreamRecord(name, counter.as_plain, started=started)
    add_stream(record)
    return record, counter


def count(counter: StatisticsCounter, done: int, failed: int = 0) -> None:
    counter.count("read", done + failed)
    for _ in range(done):
        counter.add_result(0.25, is_late=False)
    for index in range(failed):
        counter.add_failure(index, ValueError("dark"))


def test_only_frames_of_the_profile_count():
    record, counter = stream(90.0)
    count(counter, 5, failed=2)
    before = stream_baseline()
    count(counter, 20, failed=1)
    record.ended = 104.0
    (found,) = profiled_streams(before, 100.0, 110.0)
    assert (found.read, found.done, found.failed) == (21, 20, 1)
    assert (found.start, found.stop) == (0.0, 4.0)
    assert found.rate == 5.0
    assert found.p50 == 0.25
    assert found.letters == ((0, "ValueError", "dark"),)


def test_streams_that_ended_before_or_began_after_are_left_out():
    ended, _ = stream(80.0)
    ended.ended = 95.0
    stream(111.0)
    assert profiled_streams(stream_baseline(), 100.0, 110.0) == ()


def test_streams_are_in_tables_summaries_and_files(tmp_path):
    _, counter = stream(101.0, "<camera>")
    count(counter, 20, failed=1)
    found = profiled_streams({}, 100.0, 110.0)
    profile = FinishedProfile(small_profile(streams=found))
    (row,) = profile.rows("stream")
    assert (row["stream"], row["done"], row["failed"], row["last_failed"]) == ("<camera>", 20, 1, 0)
    assert row["last_error"] == "ValueError: dark"
    (line,) = [each for each in profile.summary().lines if "<camera>" in each]
    assert "20 of 21 frames" in line and "1 failed" in line
    assert "&lt;camera&gt;" in profile._repr_html_()
    profile.save(tmp_path / "run.json")
    assert load_profile(tmp_path / "run.json").result.streams == found
