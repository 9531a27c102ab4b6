"""Files at URLs, also on servers without ranges, and errors that name the package."""

from __future__ import annotations

import functools
import http.server
import threading

import fsspec
import pytest

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.filesystems import filesystem_of, has_ranges, open_seekable, open_stream


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """URL of a server that sends the files of a folder, as a whole only."""
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_a_server_without_ranges_is_read_as_a_whole(server, tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(range(256)) * 1000)
    url = f"{server}/x.bin"
    assert not has_ranges(url) and has_ranges(str(tmp_path / "x.bin"))
    with open_seekable(url) as file:
        file.seek(-3, 2)
        assert file.read() == b"\xfd\xfe\xff"
    with open_stream(url) as file:
        assert file.read(2) == b"\x00\x01"
    with pytest.raises(FileNotFoundError):
        open_stream(f"{server}/none.bin").read(1)


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://bucket/x.csv", "dask-onnx[s3]"), ("gs://bucket/x.csv", "dask-onnx[gcs]")],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(monkeypatch, url, package):
    def missing(*_, **__):
        raise ImportError("not here")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(InputError) as raised:
        filesystem_of(url, "quarantine")
    assert raised.value.option == "quarantine" and raised.value.reason == "not here"
    assert package in raised.value.next_step


def test_an_unknown_protocol_is_refused_with_those_that_are_like_it():
    with pytest.raises(InputError) as raised:
        filesystem_of("memry://x.csv")
    assert raised.value.suggestions == (Suggestion("path", "memory://x.csv"),)
