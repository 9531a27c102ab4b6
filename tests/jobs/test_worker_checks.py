"""Checks on workers: each problem is told with the worker, before any work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dask_onnx.core.errors import InputError
from dask_onnx.io.caller_functions import NamedFunction
from dask_onnx.jobs.worker_checks import check_workers, local_ends


class Here:
    """Client of a single worker, which is this process."""

    def run(self, function, *arguments, workers, on_error):
        assert on_error == "return"
        return {"tcp://here:1": function(*arguments)}


def output(problem):
    return SimpleNamespace(problem=lambda: problem)


def test_files_outputs_and_functions_are_looked_at(tmp_path):
    (tmp_path / "x.csv").write_text("a\n1\n")
    files = local_ends([str(tmp_path / "x.csv")])
    check_workers(Here(), files, [output(None)], [NamedFunction("json:dumps", "pre")])
    for arguments in (
        (files, [output("the folder is not writable")]),
        (files, [], [NamedFunction("no_such_module:f", "pre")]),
    ):
        with pytest.raises(InputError) as raised:
            check_workers(Here(), *arguments)
        assert "tcp://here:1" in raised.value.cause and raised.value.reason
    (tmp_path / "x.csv").unlink()
    with pytest.raises(InputError) as raised:
        check_workers(Here(), files, [])
    assert "x.csv" in raised.value.reason


def test_the_first_and_the_last_local_file_are_looked_at(tmp_path):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        (tmp_path / path).touch()
    assert [file.path for file in local_ends(paths)] == [paths[0], paths[2]]
    assert [file.path for file in local_ends(paths[:1])] == paths[:1]
    assert local_ends(["s3://bucket/x.csv"]) == [] == local_ends([])


def test_a_worker_that_cannot_be_asked_is_an_error():
    client = SimpleNamespace(run=lambda *_, **options: {"tcp://there:1": ImportError("no module")})
    with pytest.raises(InputError) as raised:
        check_workers(client, [], [])
    assert raised.value.reason == "no module"
