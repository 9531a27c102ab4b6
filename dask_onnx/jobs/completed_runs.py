"""Records of complete outputs, by which a run that is repeated finds that nothing is left to do.

The record of a folder, or of an output in an object store, is the content of its marker
``_SUCCESS``, so that it goes where the output goes. The record of a single file is in the store of
the host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dask_onnx.core.errors import InputError, StoreError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.io.run_manifest import RunManifest, plain
from dask_onnx.io.targets import folder_size, read_marker, write_marker
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.store.store_files import write_file
from dask_onnx.store.weight_store import Store

MAX_RECORDS = 1000
"""Single files that a store remembers; the oldest are forgotten first."""
_NUMBERS = ("blocks", "rows", "bad_rows", "block_rows", "batch_size", "shape", "pictures", "tokens")
"""Fields of `FilePrediction` that a record keeps."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompletedRun:
    """The run that has completed an output."""

    manifest: RunManifest
    """Description of everything that decided the results."""
    result: Mapping[str, Any]
    """Numbers of the run, by the names of fields of `FilePrediction`."""
    content: Sequence[int]
    """Files and bytes of a folder; bytes and time of modification, in ns, of a single file."""

    def prediction(self, files: Sequence[str]) -> FilePrediction:
        """Return the result of a repeated run, which has nothing to do.

        Parameters
        ----------
        files : sequence of str
            Outputs.
        """
        numbers = dict(self.result)
        if numbers.get("shape") is not None:
            numbers["shape"] = tuple(numbers["shape"])
        return FilePrediction(
            files=tuple(files),
            seconds=0.0,
            workers=0,
            resumed_blocks=int(numbers["blocks"]),
            was_complete=True,
            **numbers,
        )


def record_completed(targets: Sequence[str], manifest: RunManifest, result: FilePrediction) -> None:
    """Record that outputs are complete. A place that cannot be written records nothing.

    Parameters
    ----------
    targets : sequence of str
        Absolute paths or URLs of all outputs of a run.
    manifest : RunManifest
    result : FilePrediction
    """
    numbers = {name: plain(getattr(result, name)) for name in _NUMBERS}
    # The names of incomplete files are of no interest any more, and differ from run to run.
    described = json.loads(replace(manifest, layout={}).to_json())
    for target in targets:
        try:
            content = _content(target)
            record = {"manifest": described, "result": numbers, "content": content}
            text = json.dumps(record, sort_keys=True).encode()
            if _is_file(target):
                _write_to_store(target, text)
            else:
                write_marker(target, text)
        except (OSError, StoreError) as error:
            log.warning("there is no record that %s is complete: %s", target, error)


def completed_run(target: str) -> CompletedRun | None:
    """Return the run that has completed an output; None if there is no record of one.

    Parameters
    ----------
    target : str
        Absolute path, or URL.
    """
    try:
        content = _record_path(target).read_bytes() if _is_file(target) else read_marker(target)
        found = json.loads(content or b"")
        manifest = RunManifest.from_json(json.dumps(found["manifest"]))
        known = {"tokens": None, **found["result"]}  # records of older versions lack it
        numbers = {name: known[name] for name in _NUMBERS}
        return CompletedRun(manifest, numbers, [int(each) for each in found["content"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def change_of(target: str, run: CompletedRun) -> str | None:
    """Return in words how an output differs from what its run has written; None if it does not.

    Parameters
    ----------
    target : str
        Absolute path, or URL.
    run : CompletedRun
    """
    try:
        now = _content(target)
    except FileNotFoundError:
        return f"{target} is missing"
    if now == list(run.content):
        return None
    if _is_file(target):
        return f"{target} was changed after it was complete"
    (files, size), (old_files, old_size) = now, run.content
    return f"{target} has {files:,} files of {size:,} bytes, and had {old_files:,} of {old_size:,}"


def require_complete(
    run: CompletedRun, manifest: RunManifest, targets: Sequence[str], block_rows: int | None
) -> None:
    """Raise an error unless outputs are what a run would write.

    Parameters
    ----------
    run : CompletedRun
        The run that has completed the first output.
    manifest : RunManifest
        What decides the results of the run that is to be repeated, as far as it is known before it
        runs.
    targets : sequence of str
        Its outputs.
    block_rows : int or None
        Rows of a block, as the caller gave them.

    Raises
    ------
    InputError
        With the differences as `reason`.
    """
    known = replace(manifest, outputs=run.manifest.outputs)
    found = known.differences(run.manifest)
    if block_rows not in (None, run.manifest.block_rows):
        found.append(f"block_rows is {block_rows}, and was {run.manifest.block_rows}")
    for target in targets:
        other = completed_run(target)
        if other is None:
            found.append(f"{target} is not complete, or there is no record that it is")
        elif other.manifest != run.manifest:
            found.append(f"{target} was written by another run")
        elif (change := change_of(target, other)) is not None:
            found.append(change)
    if found:
        raise InputError(
            f"{targets[0]} is complete, and this run differs: {'; '.join(found[:8])}",
            "choose another output, or start anew with overwrite=True, which replaces it",
            option="resume",
            reason="; ".join(found),
            numbers={"differences": len(found)},
            suggestions=[Suggestion("overwrite", True)],
        )


def _is_file(target: str) -> bool:
    return not is_url(target) and not Path(target).is_dir()


def _content(target: str) -> list[int]:
    if _is_file(target):
        status = Path(target).stat()
        return [status.st_size, status.st_mtime_ns]
    return list(folder_size(target))


def _record_path(target: str) -> Path:
    digest = hashlib.sha256(os.path.realpath(target).encode()).hexdigest()[:32]
    return Store().root / "outputs" / f"{digest}.json"


def _write_to_store(target: str, text: bytes) -> None:
    path = _record_path(target)
    write_file(path.parent.parent, path, text)
    dated = []
    for each in path.parent.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # another process may forget them too
            dated.append((each.stat().st_mtime_ns, each))
    for _, each in sorted(dated)[: max(0, len(dated) - MAX_RECORDS)]:
        each.unlink(missing_ok=True)
