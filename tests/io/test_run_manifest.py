"""Manifests of runs: what decides results is compared, and differences are told in words."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import stat_file
from dask_onnx.io.run_manifest import RunManifest, file_identities, package_versions, plain

STORED = RunManifest(
    "arrays",
    "0123456789abcdef",
    {"batch_size": 4, "outputs": ["y"]},
    {"x.npy": [10, "1", "d"]},
    outputs=(["y", "float32", [3]],),
    rows=10,
    versions={"onnxruntime": "1.22.0"},
)


def test_a_manifest_survives_json():
    stored = replace(STORED, layout={"run": "r"}, block_rows=5, blocks=2)
    assert RunManifest.from_json(stored.to_json()) == stored
    with pytest.raises(ValueError, match="no manifest"):
        RunManifest.from_json("[]")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "fedcba9876543210"}, ["fedcba987654", "0123456789ab"]),
        ({"options": {"batch_size": 8, "outputs": ["y"]}}, ["batch_size", "8", "4"]),
        ({"options": {"outputs": ["y"]}}, ["batch_size", "null", "4"]),
        ({"inputs": {"x.npy": [10, "2", "d"]}}, ["x.npy has changed"]),
        ({"inputs": {"x.npy": [10, "1", "d"], "z": [1]}}, ["z is new"]),
        ({"inputs": {}}, ["x.npy is no longer"]),
        ({"outputs": [["y", "float64", [3]]]}, ["float64", "float32"]),
        ({"rows": 11}, ["11 rows", "10"]),
        ({"versions": {"onnxruntime": "1.23.0"}}, ["onnxruntime", "1.23.0", "1.22.0"]),
        ({"kind": "a table"}, ["a table", "arrays"]),
        ({"format": 2}, ["format", "2", "1"]),
    ],
)
def test_each_difference_is_told(change, told):
    now = replace(STORED, **change)
    (words,) = now.differences(STORED)
    assert all(part in words for part in told)
    with pytest.raises(InputError) as raised:
        now.require_same(STORED, "y.npy")
    assert raised.value.option == "resume" and raised.value.numbers == {"differences": 1}
    assert raised.value.suggestions == (Suggestion("overwrite", True),)


def test_layout_and_blocks_are_taken_over_rather_than_compared():
    now = replace(STORED, layout={"run": "other"}, blocks=9, block_rows=1)
    assert now.differences(STORED) == []


def test_values_become_those_of_json_and_functions_digests_of_their_content():
    def a(x):
        return x + 1

    def b(x):
        return x + 2

    assert plain({"x": (1, np.float32(0.5), {3, 1}), "n": float("nan")}) == {
        "x": [1, 0.5, [1, 3]],
        "n": "nan",
    }
    assert plain(a) == plain(a) != plain(b)
    assert plain(np.zeros(3)) != plain(np.ones(3))


def test_a_changed_file_has_another_identity(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"a" * 200_000)
    before = file_identities([stat_file(str(path))])
    assert file_identities([stat_file(str(path))]) == before
    path.write_bytes(b"a" * 199_999 + b"b")
    assert file_identities([stat_file(str(path))]) != before


@pytest.mark.parametrize("size", [1000, 2**18])
def test_a_file_that_was_touched_is_the_same_if_it_is_small_and_else_told_as_touched(
    tmp_path, size
):
    path = tmp_path / "x.npy"
    path.write_bytes(bytes(size))
    before = replace(STORED, inputs=file_identities([stat_file(str(path))]))
    os.utime(path, ns=(0, 10**18))
    touched = replace(STORED, inputs=file_identities([stat_file(str(path))]))
    found = touched.differences(before)
    if size == 1000:
        assert found == []
    else:
        assert len(found) == 1 and "another time of modification" in found[0]
    path.write_bytes(b"1" + bytes(size - 1))
    changed = replace(STORED, inputs=file_identities([stat_file(str(path))]))
    assert changed.differences(before) == [f"{path} has changed"]


def test_many_files_are_one_digest_that_tells_whether_one_differs(tmp_path):
    path = tmp_path / "x"
    path.touch()
    files = [replace(stat_file(str(path)), path=f"/data/{i}") for i in range(1500)]
    first = file_identities(files)
    assert len(first) == 1
    assert file_identities([replace(files[0], size=1), *files[1:]]) != first


def test_versions_name_what_computes_and_writes():
    assert {"dask_onnx", "onnxruntime", "onnx", "numpy"} <= set(package_versions())
