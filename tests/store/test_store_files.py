from __future__ import annotations

import pytest

from dask_onnx.store.store_files import TEMPORARY, covers, write_file


@pytest.mark.parametrize(
    ("parts", "is_covered"),
    [
        ("0 10\n", True),
        ("6 4\n0 3\n3 3\n", True),
        ("0 6\n4 6\n", True),
        ("0 3\n6 4\n", False),
        ("0 9\n", False),
        ("", False),
    ],
    ids=["whole", "any order", "overlap", "gap", "too short", "nothing"],
)
def test_parts_cover_a_file_without_gaps(parts, is_covered):
    assert covers(parts, 10) == is_covered


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    root = tmp_path / "store"
    for data in (b"old", b"new"):
        write_file(root, root / "folder" / "file", data)
    assert (root / "folder" / "file").read_bytes() == b"new"
    assert not list(root.rglob(f"{TEMPORARY}*"))
