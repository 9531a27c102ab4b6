from __future__ import annotations

from dataclasses import replace

import dask.config
import pytest

from dask_onnx.core.errors import StageError
from dask_onnx.runtime import cores, package_versions
from dask_onnx.runtime.package_versions import check_versions, installed_versions

OTHER = replace(installed_versions(), onnxruntime="0.0.1")


def test_other_versions_are_an_error_with_both():
    with pytest.raises(StageError) as caught:
        check_versions(OTHER)
    assert caught.value.option == "onnx.version-mismatch"
    assert f"{installed_versions().onnxruntime} here, 0.0.1" in caught.value.reason


def test_other_versions_may_be_a_warning():
    with (
        dask.config.set({"onnx.version-mismatch": "warn"}),
        pytest.warns(UserWarning, match="other versions"),
    ):
        check_versions(OTHER)


def test_a_plan_made_without_onnxruntime_fits_every_version():
    check_versions(replace(installed_versions(), onnxruntime=None))
    check_versions(installed_versions())


@pytest.mark.parametrize(
    ("installed", "expected"),
    [({}, None), ({"onnxruntime-gpu": "1.30.0"}, "1.30.0"), ({"onnxruntime": "1.31.0"}, "1.31.0")],
)
def test_every_distribution_of_onnxruntime_counts(monkeypatch, installed, expected):
    monkeypatch.setattr(package_versions, "_version", installed.get)
    versions = installed_versions.__wrapped__()
    assert versions.onnxruntime == expected
    monkeypatch.setattr(cores, "installed_versions", lambda: versions)
    assert cores.ort_version() == (expected or "none")
