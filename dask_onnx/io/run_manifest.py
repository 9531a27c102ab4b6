"""Description of a resumable run: everything that decides its results, compared on resumption.

A manifest is plain data that is stored as JSON beside an incomplete output.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import FileSource, is_url
from dask_onnx.core.filesystems import filesystem_of
from dask_onnx.core.specs import ORT_DISTRIBUTIONS

FORMAT = 1
"""Version of the format of manifests and journals."""
_PACKAGES = ("dask_onnx", "onnxruntime", "onnx", "numpy", "pyarrow", "pandas", "zarr")
"""Packages that compute or write results."""
_LISTED_FILES = 1000
"""Files whose identity a manifest lists one by one; of more, a digest tells whether one differs."""
_SAMPLE_BYTES = 2**16
"""Bytes of the beginning and of the end of a file that are part of its identity."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class RunManifest:
    """Everything that decides the results of a run, and how they are divided into blocks.

    All values are those of JSON; `plain` makes them.
    """

    kind: str
    """Kind of the run, such as "arrays" or "table"."""
    model: str
    """Token of the model."""
    options: Mapping[str, Any]
    """Options that change results, by name."""
    inputs: Mapping[str, Any]
    """Identity of each part of the input, by path or name."""
    outputs: Sequence[Any] = ()
    """Specs of the outputs."""
    rows: int | None = None
    """Rows of the input; None if they are not known before it is read."""
    blocks: int | None = None
    """Number of blocks; None if it is not known."""
    block_rows: int | None = None
    """Rows of a block, which a resumed run takes over; None if parts of the input are blocks."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Values that a resumed run takes over without comparison: names of incomplete files."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Version of each package that computes or writes results, from `package_versions`."""
    format: int = FORMAT

    def differences(self, stored: RunManifest) -> list[str]:
        """Return in words how a stored manifest differs in what decides results; empty if it does
        not.

        Parameters
        ----------
        stored : RunManifest
            Manifest of the run that is to be resumed.

        Returns
        -------
        list of str
            Such as "the model is 0a1b2c3d4e5f, and was 9f8e7d6c5b4a".
        """
        if self.format != stored.format:
            return [f"the format is {self.format}, and was {stored.format}"]
        found = []
        if self.kind != stored.kind:
            found.append(f"the input is read as {self.kind}, and was as {stored.kind}")
        if self.model != stored.model:
            found.append(f"the model is {self.model[:12]}, and was {stored.model[:12]}")
        found += _different_files(self.inputs, stored.inputs)
        for name in sorted({*self.options, *stored.options}):
            now, before = self.options.get(name), stored.options.get(name)
            if now != before:
                found.append(f"{name} is {_short(now)}, and was {_short(before)}")
        if list(self.outputs) != list(stored.outputs):
            found.append(
                f"the outputs are {_short(self.outputs)}, and were {_short(stored.outputs)}"
            )
        if self.rows != stored.rows:
            found.append(f"the input has {self.rows} rows, and had {stored.rows}")
        for name in sorted({*self.versions, *stored.versions}):
            now, before = self.versions.get(name), stored.versions.get(name)
            if now != before:
                found.append(f"{name} is {now or 'absent'}, and was {before or 'absent'}")
        return found

    def require_same(self, stored: RunManifest, target: str, others: Sequence[str] = ()) -> None:
        """Raise an error unless a run may go on with what a stored one has done.

        Parameters
        ----------
        stored : RunManifest
        target : str
            The output, for the error.
        others : sequence of str
            Differences beside those of the manifests, in words.

        Raises
        ------
        InputError
            With the differences as `reason`.
        """
        if found := [*self.differences(stored), *others]:
            raise InputError(
                f"{target} was begun by a run that differs: {'; '.join(found[:8])}",
                "resume with the same model, options, input and packages, or start anew with "
                "overwrite=True, which removes what is done",
                option="resume",
                reason="; ".join(found),
                numbers={"differences": len(found)},
                suggestions=[Suggestion("overwrite", True)],
            )

    def to_json(self) -> str:
        """Return the manifest as JSON."""
        values = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return json.dumps(values, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> RunManifest:
        """Return the manifest of a JSON text.

        Raises
        ------
        ValueError
            The text is no manifest.
        """
        values = json.loads(text)
        names = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or not {"kind", "model", "options", "inputs"} <= set(
            values
        ):
            raise ValueError("no manifest of a run")
        found = {name: value for name, value in values.items() if name in names}
        return cls(**{**found, "outputs": tuple(found.get("outputs", ()))})


def plain(value: Any) -> Any:
    """Return a value as JSON has it: records of numbers, texts, lists and dicts.

    Functions and other objects become digests of their pickled content.

    Parameters
    ----------
    value : Any
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else repr(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Path | np.dtype):
        return str(value)
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), digest_of(np.ascontiguousarray(value).data)]
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        values = [plain(each) for each in value]
        return sorted(values, key=repr) if isinstance(value, set | frozenset) else values
    if isinstance(value, bytes):
        return digest_of(value)
    return f"{type(value).__name__} {digest_of(cloudpickle.dumps(value))}"


def digest_of(content: Any) -> str:
    """Return the SHA-256 of bytes, 32 hexadecimal digits of it."""
    return hashlib.sha256(content).hexdigest()[:32]


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that compute and write results, by name."""
    found = {}
    for name in _PACKAGES:
        for distribution in ORT_DISTRIBUTIONS if name == "onnxruntime" else (name,):
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def file_identities(files: Iterable[FileSource]) -> dict[str, Any]:
    """Return the identities of the files of an input: size, digest of a sample, and time or ETag.

    Small files are compared by their content alone. What tells when a file was written comes last.

    Parameters
    ----------
    files : iterable of FileSource
        Files, or folders, whose version is empty.

    Returns
    -------
    dict of str to list
        By path; of more than a thousand files two digests under the name of the first.
    """
    distinct = {source.path: source for source in files}
    if len(distinct) <= _LISTED_FILES:
        return {path: _identity(source) for path, source in distinct.items()}
    first = next(iter(distinct))
    sizes, versions = (
        digest_of("\n".join(lines).encode())
        for lines in (
            [f"{source.path}\0{source.size}" for source in distinct.values()],
            [source.version for source in distinct.values()],
        )
    )
    return {f"{first} and {len(distinct) - 1} others": [len(distinct), sizes, versions]}


def _identity(source: FileSource) -> list[Any]:
    if is_url(source.path) or not Path(source.path).is_file():
        return [source.size, "", source.version]
    with open(source.path, "rb") as file:
        head = file.read(_SAMPLE_BYTES)
        file.seek(max(source.size - _SAMPLE_BYTES, 0))
        sample = digest_of(head + file.read(_SAMPLE_BYTES))
    return [source.size, sample, "" if source.size <= 2 * _SAMPLE_BYTES else source.version]


def content_digest(path: str) -> str:
    """Return a digest of all of a small file, such as a tokenizer's.

    Parameters
    ----------
    path : str
        Path or URL.
    """
    system, inner = filesystem_of(path)
    return digest_of(system.cat_file(inner))


def _different_files(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    missing = sorted(set(before) - set(now))
    added = sorted(set(now) - set(before))
    differing = sorted(path for path in set(now) & set(before) if now[path] != before[path])
    touched = [path for path in differing if _differ_in_time(path, now[path], before[path])]
    found = []
    for words, paths in (
        ("is no longer part of the input", missing),
        ("is new in the input", added),
        ("has changed", [path for path in differing if path not in touched]),
        (
            "has another time of modification, and the same size and sample: give it the old time "
            "if nothing has changed",
            touched,
        ),
    ):
        found += [f"{path} {words}" for path in paths[:_SHOWN]]
        if len(paths) > _SHOWN:
            found.append(f"{len(paths) - _SHOWN:,} more files: each {words}")
    return found


def _differ_in_time(path: str, now: Any, before: Any) -> bool:
    """Return whether local files differ in nothing but in when they were written."""
    are_lists = isinstance(now, list) and isinstance(before, list) and len(now) == len(before) > 1
    return are_lists and not is_url(path) and now[:-1] == before[:-1]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
