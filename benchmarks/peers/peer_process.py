"""Handle of one peer's process tree: timing, memory, the loss of a worker, a clean end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from work import Work

_HERE = Path(__file__).parent
_END_SECONDS = 60
"""Seconds after which processes that were asked to end are killed."""
_SAMPLE_SECONDS = 0.25
_NO_WORKERS = ("java", "raylet", "gcs_server")
"""Processes of a peer that run none of the user's code."""


class PeerError(Exception):
    """The peer raised an error, ended or took too long."""

    def __init__(self, message: str, *, not_installed: bool = False) -> None:
        super().__init__(message)
        self.not_installed = not_installed


def _pss(process: psutil.Process) -> int:
    """Return the proportional set size in bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class PeerProcess:
    """A started peer.

    Parameters
    ----------
    peer : str
        Name of the peer: its module is ``peer_<name>``.
    work : Work
        The job that it runs.
    folder : Path
        Scratch folder, for the log and the description of the work.
    limit : float
        Seconds after which a run is given up.
    """

    def __init__(self, peer: str, work: Work, folder: Path, limit: float) -> None:
        self._limit, self.log = limit, folder / f"{peer}.log"
        work.write(folder / "work.json")
        paths = [str(_HERE), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.began = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(_HERE / "host.py"), peer, str(folder / "work.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=folder,
            )
        self._root = psutil.Process(self._process.pid)
        self._seen: set[psutil.Process] = {self._root}

    def tree(self) -> list[psutil.Process]:
        """Return the process with its descendants, and remember them for the end."""
        found = [self._root]
        with contextlib.suppress(psutil.NoSuchProcess):
            found += self._root.children(recursive=True)
        self._seen.update(found)
        return found

    def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says why it ended
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit)
        if not ready:
            raise PeerError(f"not done after {self._limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"], not_installed=answer["not_installed"])
        return answer

    def run(self) -> dict[str, Any]:
        """Run the job; return its `seconds` and `graph_bytes`."""
        self.send(do="run")
        return self.receive()

    def first_run(self) -> float:
        """Run the job; return seconds since the interpreter was started."""
        self.run()
        return time.perf_counter() - self.began

    def save(self, path: Path) -> None:
        self.send(do="save", path=str(path))
        self.receive()

    @contextlib.contextmanager
    def sampled_memory(self) -> Iterator[list[int]]:
        """Add up the memory of all processes now and then; the list gets the peak, in bytes."""
        peak, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.wait(_SAMPLE_SECONDS):
                peak[0] = max(peak[0], sum(map(_pss, self.tree())))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            stop.set()
            thread.join()

    def kill_after(self, wait: float, watched: float) -> str:
        """Wait, then kill the process that uses most CPU for `watched` seconds.

        Returns the end of its command line. Seconds are of the run that is going on.
        """

        def used() -> dict[psutil.Process, float]:
            found = {}
            for process in self.tree()[1:]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    found[process] = times.user + times.system
            return found

        time.sleep(wait)
        before = used()
        time.sleep(watched)
        gained = {p: seconds - before.get(p, 0) for p, seconds in used().items()}
        for process in sorted(gained, key=lambda p: -gained[p]):
            with contextlib.suppress(psutil.NoSuchProcess):
                name, command = process.name(), " ".join(process.cmdline()).strip()[-60:]
                if not name.startswith(_NO_WORKERS):
                    process.send_signal(signal.SIGKILL)
                    return command or name
        raise PeerError("it has no worker process")

    def close(self) -> None:
        """End the peer; kill what is left of its processes."""
        self.tree()
        self.send(do="stop")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        for process in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
