"""What errors say in terms of Python, said in terms of a command's options."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from dask_onnx.core.errors import PlanError, StageError

Command = Literal["plan", "predict"]

_BOTH = (
    (
        r"model\.plan\('pipeline', n_stages=3\)\.annotate\(path\)",
        "dask-onnx plan MODEL --strategy pipeline --n-stages 3 --annotate FILE",
    ),
    (r"from_annotations\(configuration='(.*?)'\)", r"--configuration \1"),
    (r"\bn_stages=", "--n-stages "),
    (r"\bn_stages\b", "--n-stages"),
)
_RULES: dict[Command, Sequence[tuple[str, str]]] = {
    "plan": (
        *_BOTH,
        (r"\bplan\('per_node'\)\.explain\(\)", "dask-onnx plan MODEL --strategy per_node"),
        (r"\bplan\(measure=rows\)", "dask-onnx plan --measure FILE"),
        (r"\bthe feeds of measure=", "the rows of --measure"),
        (r"\bshapes=\{\.\.\.\}", "--shape NAME=N,N,..."),
        (r'\bmemory_limit=(bytes|"1\.5GiB" or 1_500_000_000)', "--memory-limit 1.5GiB"),
        (r"\bn_workers=", "--n-workers "),
        (r"\bn_workers\b", "--n-workers"),
        (r"\bmin_seconds\b", "--min-seconds"),
        (r"\bmemory_limit\b", "--memory-limit"),
    ),
    "predict": (
        # Its --memory-limit is a worker's, not a stage's.
        (r", or memory_limit=bytes", ""),
        *_BOTH,
        (r"\bbatch_size=(\d)", r"--batch-size \1"),
    ),
}
"""Patterns that no error has by accident, in the order in which they are tried."""


def in_options(text: str, command: Command) -> str:
    """`text` with what it says of our Python replaced by what a command's options are called."""
    for pattern, option in _RULES[command]:
        text = re.sub(pattern, option, text)
    return text


@contextlib.contextmanager
def worded_for(command: Command) -> Iterator[None]:
    """Errors about plans name the command's options; also as a decorator."""
    try:
        yield
    except (PlanError, StageError) as error:
        cause, next_step = (in_options(text, command) for text in (error.cause, error.next_step))
        if (cause, next_step) == (error.cause, error.next_step):
            raise
        raise type(error)(cause, next_step) from error
