"""Checks on all workers before the work of a job: its files, its outputs and the functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from distributed import Client

from dask_onnx.cluster.worker_answers import ask_workers
from dask_onnx.core.errors import InputError
from dask_onnx.core.files import FileSource, is_url, stat_file
from dask_onnx.io.caller_functions import NamedFunction


class Writable(Protocol):
    """Output of a job, as far as a worker checks it."""

    def problem(self) -> str | None:
        """Return the reason why this process cannot write the output; None if it can."""


def local_ends(paths: Sequence[str]) -> list[FileSource]:
    """Return the first and the last of the local files of an input, for `check_workers`.

    Parameters
    ----------
    paths : sequence of str
        Absolute paths or URLs.
    """
    local = [path for path in (*paths[:1], *paths[-1:]) if not is_url(path)]
    return [stat_file(path) for path in dict.fromkeys(local)]


def check_workers(
    client: Client,
    files: Iterable[FileSource],
    outputs: Iterable[Writable],
    functions: Iterable[NamedFunction] = (),
) -> None:
    """Let every worker look at files, outputs and functions, before any work starts.

    Parameters
    ----------
    client : Client
    files : iterable of FileSource
        Files of the input, as this process sees them.
    outputs : iterable of Writable
    functions : iterable of NamedFunction
        Functions of the caller.

    Raises
    ------
    InputError
        A worker does not see a file as this process does, cannot write an output, or cannot import
        a function; with its address.
    """
    given = tuple(files), tuple(outputs), tuple(functions)
    found = ask_workers(client, _problems, *given)
    for worker, problems in found.items():
        if isinstance(problems, Exception):
            raise InputError(
                f"the files and functions cannot be checked on worker {worker}: {problems}",
                "install the same version of dask_onnx on every worker",
                reason=str(problems),
            )
        if problems:
            raise InputError(
                f"worker {worker}: {problems[0]}",
                "use a path that is the same on the client and on every worker, and that all of "
                "them may read or write",
                option="path",
                reason=problems[0],
            )


def _problems(
    files: Sequence[FileSource], outputs: Sequence[Writable], functions: Sequence[NamedFunction]
) -> list[str]:
    problems = [each.problem() for each in (*files, *outputs)]
    for function in functions:
        try:
            function.resolve()
        except InputError as error:
            problems.append(error.cause)
    return [problem for problem in problems if problem]
