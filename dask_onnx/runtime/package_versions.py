"""Versions of the installed packages: those of a plan must match those of the workers."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from dataclasses import dataclass

from dask_onnx.core import config
from dask_onnx.core.errors import StageError
from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.core.specs import ORT_DISTRIBUTIONS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackageVersions:
    """Versions of the packages that decide what a stage computes."""

    dask_onnx: str
    """Version of this package."""
    onnxruntime: str | None
    """Version of ONNX Runtime; None if it is not installed."""


@cached_in_process("versions of installed packages")
def installed_versions() -> PackageVersions:
    """Return the versions in this environment, from metadata and without importing a package."""
    found = [version for name in ORT_DISTRIBUTIONS if (version := _version(name))]
    return PackageVersions(_version("dask-onnx") or "unknown", found[0] if found else None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_versions(planned: PackageVersions) -> None:
    """Compare this process's packages with those of the process that made the plan.

    A plan that was made without ONNX Runtime fits any version of it.

    Raises
    ------
    StageError
        They differ, and ``onnx.version-mismatch`` is "error"; a warning otherwise.
    """
    installed = installed_versions()
    differences = [
        f"{name} {here} here, {there} where the plan was made"
        for name, here, there in (
            ("dask_onnx", installed.dask_onnx, planned.dask_onnx),
            ("onnxruntime", installed.onnxruntime, planned.onnxruntime),
        )
        if there is not None and here != there
    ]
    if not differences:
        return
    reason = "; ".join(differences)
    cause = f"this worker has other versions: {reason}"
    if config.get("version-mismatch") == "warn":
        warnings.warn(cause, stacklevel=2)
        log.warning(cause)
        return
    raise StageError(
        cause,
        "install the same versions everywhere, or set onnx.version-mismatch to 'warn' "
        "on the workers",
        option="onnx.version-mismatch",
        reason=reason,
    )
