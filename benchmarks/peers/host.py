"""Process of one peer: starts it, runs its job each time it is told, and answers with seconds.

    python host.py PEER work.json

Commands and answers are lines of JSON on standard input and output; what the peer prints goes to
standard error. The peer's own processes are children of this one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from work import Result, Work


def private_pipes() -> tuple[IO[str], IO[str]]:
    """Take standard input and output away from the peer and its children; return them."""
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return commands, answers


@contextlib.contextmanager
def counted_graphs() -> Iterator[list[int]]:
    """Collect the bytes of each graph that a Dask client of this process sends."""
    sizes: list[int] = []
    if "distributed" not in sys.modules:
        yield sizes
        return
    from distributed import Client

    send = Client._send_to_scheduler

    def counted(client: Any, message: dict[str, Any]) -> None:
        if message.get("op") == "update-graph":
            graph = message["expr_ser"]
            frames = sum(memoryview(frame).nbytes for frame in graph.frames)
            sizes.append(len(pickle.dumps(graph.header)) + frames)
        send(client, message)

    Client._send_to_scheduler = counted
    try:
        yield sizes
    finally:
        Client._send_to_scheduler = send


def emptied(folder: str) -> None:
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()


def serve(
    run: Callable[[], Result | None], work: Work, commands: IO[str], answers: IO[str]
) -> None:
    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    result: Result | None = None
    for line in commands:
        command = json.loads(line)
        if command["do"] == "run":
            emptied(work.output)
            with counted_graphs() as sizes:
                began = time.perf_counter()
                result = run()
                seconds = time.perf_counter() - began
            answer(seconds=seconds, graph_bytes=sum(sizes) or None)
        elif command["do"] == "save":
            np.savez(command["path"], **(result or {}))
            answer()
        else:
            return


def main(peer: str, path: str) -> None:
    commands, answers = private_pipes()
    try:
        work = Work.read(Path(path))
        module = importlib.import_module(f"peer_{peer}")
        function = getattr(module, work.job)
        with module.started(work) as state:
            serve(lambda: function(work, state), work, commands, answers)
    except BaseException as error:
        traceback.print_exc()
        missing = isinstance(error, ImportError)
        first = str(error).strip().partition("\n")[0][:300]
        text = ": ".join(filter(None, (type(error).__name__, first)))
        line = {"error": text, "not_installed": missing}
        answers.write(json.dumps(line) + "\n")
        answers.flush()
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
