"""Results of trials of untrusted models, by the digest of the model's file."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from dask_onnx.core.errors import StoreError
from dask_onnx.store.store_files import write_file
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

MAX_RECORDS = 1000
"""Models that are remembered; the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """Result of a trial that came to an end."""

    refusal: str | None
    """Crash or exceeded limit that ended the trial; None if the model is accepted."""


def read_trial(store: Store, digest: str) -> TrialRecord | None:
    """Return the result of the trial of a model; None if there was none.

    Parameters
    ----------
    digest : str
        Digest of the model and of the versions that it was tried with.
    """
    try:
        refusal = json.loads((_folder(store) / f"{digest}.json").read_bytes())["refusal"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged record is made again
    return TrialRecord(refusal) if isinstance(refusal, str | None) else None


def write_trial(store: Store, digest: str, record: TrialRecord) -> None:
    """Remember the result of a trial; a store that cannot be written remembers nothing."""
    path = _folder(store) / f"{digest}.json"
    try:
        # A prune that runs meanwhile would remove the file before it has its name.
        with store.shared_access():
            write_file(store.root, path, json.dumps({"refusal": record.refusal}).encode())
    except StoreError as error:
        log.info("the trial of a model is not remembered: %s", error)
        return
    dated = []
    for each in _folder(store).glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # another process may forget them too
            dated.append((each.stat().st_mtime_ns, each))
    for _, each in sorted(dated)[: max(0, len(dated) - MAX_RECORDS)]:
        each.unlink(missing_ok=True)


def _folder(store: Store) -> Path:
    return store.root / "trials"
