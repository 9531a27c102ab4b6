from __future__ import annotations

import hashlib

import pytest

from dask_onnx.store.integrity import ChecksumRecord, digest_of, identity_of


def test_a_record_survives_json():
    record = ChecksumRecord("ab", (1, 2, 3, 4))
    assert ChecksumRecord.from_json(record.to_json()) == record


def test_damaged_json_is_a_value_error():
    with pytest.raises(ValueError, match="Expecting"):
        ChecksumRecord.from_json("[")


def test_a_rewritten_file_has_another_identity(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"one")
    before = identity_of(path)
    assert identity_of(path) == before
    path.write_bytes(b"four")
    assert identity_of(path) != before


def test_the_digest_is_the_sha256_of_the_content(tmp_path):
    (tmp_path / "blob").write_bytes(b"content")
    assert digest_of(tmp_path / "blob") == hashlib.sha256(b"content").hexdigest()
