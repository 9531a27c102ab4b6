"""Hosts of `chaos`: a scheduler and two nannies with a worker each, in network namespaces.

Without root all processes share the host's network, and faults of the network are left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

HUB = "10.213.78.254"
"""Address of the scheduler, and of the client."""
PORT = 8786
TTL_SECONDS = 20
"""Seconds after which the scheduler gives up a worker that does not answer."""
_DISK_BYTES = 64 * 2**20
_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
HERE = Path(__file__).parent


def python_path() -> str:
    """Return the PYTHONPATH of processes that run the functions of `chaos_steps`."""
    return os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Network:
    """A namespace for the scheduler and one for each worker, joined by a bridge."""

    def __init__(self, hosts: int) -> None:
        number = os.getpid() % 100000
        self.hub = f"dxhub{number}"
        self.names = [f"dxhost{number}n{i}" for i in range(hosts)]
        self.devices = [f"dxc{number}n{i}" for i in range(hosts)]

    def __enter__(self) -> Network:
        command("ip", "netns", "add", self.hub)
        command(*f"ip -n {self.hub} link add br0 type bridge".split())
        command(*f"ip -n {self.hub} address add {HUB}/24 dev br0".split())
        for device in ("br0", "lo"):
            command(*f"ip -n {self.hub} link set {device} up".split())
        for i, (name, device) in enumerate(zip(self.names, self.devices, strict=True)):
            command("ip", "netns", "add", name)
            peer = f"eth0 netns {name}"
            command(*f"ip link add {device} netns {self.hub} type veth peer name {peer}".split())
            command(*f"ip -n {self.hub} link set {device} master br0".split())
            command(*f"ip -n {name} address add 10.213.78.{i + 1}/24 dev eth0".split())
            command(*f"ip -n {name} link set eth0 up".split())
            command(*f"ip -n {name} link set lo up".split())
            command(*f"ip -n {self.hub} link set {device} up".split())
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self.names, self.hub):
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def set_link(self, host: int, state: str) -> None:
        """Set the link of a host "up" or "down"."""
        command(*f"ip -n {self.hub} link set {self.devices[host]} {state}".split())

    def slow(self, host: int) -> None:
        """Limit the rate of a host's link to 2 Mbit/s in both directions."""
        ends = (f"{self.hub} qdisc replace dev {self.devices[host]}",)
        for end in (*ends, f"{self.names[host]} qdisc replace dev eth0"):
            command(*f"tc -n {end} root tbf rate 2mbit burst 32000 latency 400ms".split())

    def heal(self) -> None:
        for i, (name, device) in enumerate(zip(self.names, self.devices, strict=True)):
            self.set_link(i, "up")
            for end in (
                f"-n {self.hub} qdisc delete dev {device}",
                f"-n {name} qdisc delete dev eth0",
            ):
                subprocess.run(["tc", *end.split(), "root"], check=False, capture_output=True)


class Hosts:
    """A running cluster whose processes and links can be broken.

    Parameters
    ----------
    folder : Path
        Scratch folder: local directories of workers, stores, logs.
    network : Network, optional
        Namespaces; None for the host's own network.
    workers : int
        Number of workers, each with a nanny and one thread.
    has_clock : bool
        Run workers under libfaketime, so that their clocks can be set.
    """

    def __init__(
        self, folder: Path, network: Network | None, workers: int = 2, *, has_clock: bool = False
    ) -> None:
        self.folder, self.network, self.workers = folder, network, workers
        self.has_clock = has_clock and _FAKETIME.exists()
        self.nannies: list[subprocess.Popen[bytes] | None] = [None] * workers
        self.address = (
            f"tcp://{HUB if network else '127.0.0.1'}:{PORT if network else _free_port()}"
        )
        self.disks: list[Path] = [folder / f"host{i}" for i in range(workers)]
        for disk in self.disks:
            disk.mkdir()
            if network:
                command("mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk))
        self.scheduler: subprocess.Popen[bytes] | None = None
        try:
            self.scheduler = self._start_scheduler()
            for i in range(workers):
                self._start_worker(i)
            self.client = Client(self.address, timeout=60, set_as_default=True)
            self.client.wait_for_workers(workers, timeout=120)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the cluster may be broken, as is the point here
            self.client.close(timeout=5)
        for process in (*self.nannies, self.scheduler):
            _kill_tree(process)
        for disk in self.disks:
            if self.network:
                subprocess.run(["umount", "-l", str(disk)], check=False)
            shutil.rmtree(disk, ignore_errors=True)

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        host, _, port = self.address.removeprefix("tcp://").partition(":")
        return self._start(
            f"scheduler --host {host} --port {port} --no-dashboard --no-show", self.folder, []
        )

    def _start_worker(self, number: int) -> None:
        prefix, host = [], "127.0.0.1"
        if self.network:
            host = f"10.213.78.{number + 1}"
            # The hub is where this process runs; a namespace is entered from any other one.
            prefix = ["ip", "netns", "exec", self.network.names[number]]
        options = f"--nworkers 1 --nthreads 1 --no-dashboard --memory-limit 3GiB --host {host}"
        options += f" --local-directory {self.disks[number]}"
        self.nannies[number] = self._start(
            f"worker {self.address} {options}", self.disks[number], prefix
        )

    def _start(self, words: str, store: Path, prefix: list[str]) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "DASK_ONNX__STORE__DIRECTORY": str(store / "store"),
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{TTL_SECONDS}s",
            "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error",
            "PYTHONPATH": python_path(),
        }
        if self.has_clock and words.startswith("worker"):
            clock = store.parent / f"{store.name}.clock"
            clock.write_text("+0s\n")
            env |= {
                "LD_PRELOAD": str(_FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        with (self.folder / f"{words.split()[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", *words.split()],
                env=env,
                cwd=self.folder,  # `python -m` finds packages in the current folder first
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def replace_scheduler(self) -> None:
        """Kill the scheduler and the workers, which do not outlive it, and start others."""
        _kill_tree(self.scheduler)
        self.scheduler = self._start_scheduler()
        for number, nanny in enumerate(self.nannies):
            _kill_tree(nanny)
            self._start_worker(number)

    def worker_pids(self) -> list[int]:
        """Return the process id of each host's worker; 0 where there is none at the moment."""
        return [_worker_of(nanny) for nanny in self.nannies]

    def heal(self, timeout: float = 60) -> bool:
        """Undo faults and wait for all workers; return whether they came."""
        if self.network:
            self.network.heal()
        for disk in self.disks:
            (disk / "filler").unlink(missing_ok=True)
            if self.has_clock:
                (disk.parent / f"{disk.name}.clock").write_text("+0s\n")
        for number, pid in enumerate(self.worker_pids()):
            if pid and psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                os.kill(pid, signal.SIGKILL)
            nanny = self.nannies[number]
            if nanny is None or nanny.poll() is not None:
                self._start_worker(number)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            try:
                states = self.client.run_on_scheduler(_worker_states)
            except Exception:  # the connection of the client may be broken too
                return False
            if len(states) == self.workers and set(states) == {"running"}:
                return True
            time.sleep(0.1)
        return False


def _worker_states(dask_scheduler: Any) -> list[str]:
    workers = dask_scheduler.workers.values()
    return [worker.status.name for worker in workers]


def _worker_of(nanny: subprocess.Popen[bytes] | None) -> int:
    if nanny is None or nanny.poll() is not None:
        return 0
    try:
        for child in psutil.Process(nanny.pid).children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                return int(child.pid)
    except psutil.Error:
        return 0
    return 0


def _kill_tree(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    found = []
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(process.pid).children(recursive=True)
    for each in (*found, process):
        with contextlib.suppress(psutil.Error, OSError):
            each.kill()
    process.wait(20)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
