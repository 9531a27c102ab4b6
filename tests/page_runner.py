"""Run the code blocks of a Markdown page in their order, in a folder of its own.

Blocks of ``python`` and ``bash`` run; a block of ``output`` is what the block before it prints. In
it, ``...`` stands for any text. Other blocks (``text``, ``yaml``, ``console``) are not run. A block
that needs more than a test has is left out by a comment with the reason::

    <!-- skip: next "needs torch" -->
"""

from __future__ import annotations

import contextlib
import difflib
import doctest
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser, SkipParser

_PRINTED = "__printed__"
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_SHELL_SECONDS = 300


class UnexpectedOutputError(AssertionError):
    """A block printed something else than the page says."""


def run_page(path: Path) -> int:
    """Run the blocks of a page in the current folder, and return their number."""
    count = 0
    document = _SYBIL.parse(path)
    # Functions of a page travel to workers by value, as those of a script do.
    document.namespace["__name__"] = "__main__"
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest:
            continue  # this block only
        except UnexpectedOutputError as error:
            raise AssertionError(f"{path.name}, line {example.line}:\n{error}") from None
        except Exception as error:
            error.add_note(f"in {path.name}, block at line {example.line}")
            raise
        count += 1
    return count


def _python(example):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PythonEvaluator()(example)
    example.document.namespace[_PRINTED] = printed.getvalue()


def _shell(example):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed],
        capture_output=True,
        text=True,
        timeout=_SHELL_SECONDS,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    example.document.namespace[_PRINTED] = done.stdout


def _output(example):
    printed = example.document.namespace[_PRINTED]
    if not doctest.OutputChecker().check_output(example.parsed, printed, _FLAGS):
        lines = difflib.unified_diff(
            example.parsed.splitlines(), printed.splitlines(), "page", "printed", lineterm=""
        )
        raise UnexpectedOutputError("\n".join(lines))


_SYBIL = Sybil(
    parsers=[
        CodeBlockParser("python", _python),
        CodeBlockParser("bash", _shell),
        CodeBlockParser("output", _output),
        SkipParser(),
    ]
)
