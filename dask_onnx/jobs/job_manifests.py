"""Manifests of jobs: which of their options and inputs decide the results."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dask_onnx.api.model import Model
from dask_onnx.core.files import is_url, reported_version
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.io.caller_functions import NamedFunction
from dask_onnx.io.run_manifest import (
    RunManifest,
    content_digest,
    digest_of,
    file_identities,
    package_versions,
    plain,
)
from dask_onnx.io.sinks import OutputSpec
from dask_onnx.io.sources import FileArray, ZarrArray
from dask_onnx.jobs.block_functions import PickledFunction
from dask_onnx.jobs.table_request import TableRequest


def job_manifest(
    kind: str, model: Model, options: Mapping[str, Any], inputs: Mapping[str, Any], **others: Any
) -> RunManifest:
    """Return the manifest of a job, with the versions of this process's packages.

    Parameters
    ----------
    kind : str
        Kind of the job.
    model : Model
    options : mapping of str to value
        Options that change results.
    inputs : mapping of str to value
        Identity of the input's parts.
    others
        Further fields of `RunManifest`.
    """
    return RunManifest(
        kind=kind,
        model=model.token,
        options=plain(options),
        inputs=plain(inputs),
        versions=package_versions(),
        **others,
    )


def spec_facts(specs: Iterable[OutputSpec]) -> list[Any]:
    """Return names, dtypes and shapes of rows of outputs, as JSON has them."""
    return [[spec.name, str(spec.dtype), list(spec.row_shape)] for spec in specs]


def function_identity(function: NamedFunction | None) -> str | None:
    """Return the name of a caller's function and a digest of what it is; None without one.

    Of a function by name, the digest is that of its module's file: what else it imports is not
    compared.
    """
    if function is None:
        return None
    if isinstance(function, PickledFunction):
        return f"{function.text}: {plain([function.function])[0]}"
    module = function.text.partition(":")[0]
    spec = importlib.util.find_spec(module)
    origin = None if spec is None else spec.origin
    if origin is None or not Path(origin).is_file():
        return function.text
    return f"{function.text}: {digest_of(Path(origin).read_bytes())}"


def array_identities(source: Mapping[str, FileArray]) -> dict[str, Any]:
    """Return the identities of the files, folders and stores of arrays, and their shapes."""
    found: dict[str, Any] = {}
    for name, array in source.items():
        found[f"the array {name!r}" if name else "the array"] = [
            str(array.dtype),
            list(array.shape),
        ]
        if isinstance(array, ZarrArray):
            found[array.url] = folder_identity(array.url)
        else:
            found |= file_identities(array.files)
    return found


def request_options(request: TableRequest) -> dict[str, Any]:
    """Return the options of a table that were given, by name."""
    given = {each.name: getattr(request, each.name) for each in fields(request)}
    if isinstance(request.tokenizer, str | os.PathLike):
        given["tokenizer"] = content_digest(os.fspath(request.tokenizer))
    # Outputs are compared by their places.
    given["quarantine"] = request.quarantine is not None
    return {name: plain(value) for name, value in given.items() if name in request.given}


def folder_identity(path: str) -> list[Any]:
    """Return the number and the bytes of the files of a folder or store, a digest of their names
    and sizes, and one of their times.

    Parameters
    ----------
    path : str
        Path or URL.
    """
    if is_url(path):
        system, root = filesystem_of(path)
        found = [
            (name.removeprefix(root), int(info.get("size") or 0), reported_version(info))
            for name, info in system.find(root, detail=True).items()
        ]
    else:
        found = []
        for folder, _, names in os.walk(path):
            for name in names:
                status = os.stat(f"{folder}/{name}")  # noqa: PTH116 - a million files
                place = os.path.relpath(f"{folder}/{name}", path)
                found.append((place, status.st_size, str(status.st_mtime_ns)))
    found.sort()
    sizes = "\n".join(f"{name}\0{size}" for name, size, _ in found)
    times = "\n".join(time for _, _, time in found)
    digests = [digest_of(text.encode()) for text in (sizes, times)]
    return [len(found), sum(size for _, size, _ in found), *digests]
