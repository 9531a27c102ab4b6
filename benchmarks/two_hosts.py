"""Two hosts on one: network namespaces joined by a link whose rate can be limited. Needs root.

A scheduler and a worker run on the first host, and a worker on the second. The script that measures
starts itself again as a client on the first host, and talks to it in lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEDULER_PORT = 8786
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def run(*command: str) -> None:
    subprocess.run(command, check=True)


class Link:
    """Two network namespaces with a veth pair between them."""

    def __init__(self) -> None:
        self.names = [f"dx{os.getpid()}{end}" for end in "ab"]
        self.devices = [f"dxv{os.getpid() % 100000}{end}" for end in "ab"]

    def __enter__(self) -> Link:
        for name in self.names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", self.devices[0], "type", "veth", "peer", "name", self.devices[1])
        for name, device, address in zip(self.names, self.devices, ADDRESSES, strict=True):
            run("ip", "link", "set", device, "netns", name)
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name])

    def limit(self, megabits: int) -> None:
        """Limit the rate in each direction to megabits a second, with a queue of 50 ms."""
        for name, device in zip(self.names, self.devices, strict=True):
            burst = max(32_000, megabits * 1_000_000 // 8 // 250)
            run(
                *f"ip netns exec {name} tc qdisc replace dev {device} root tbf".split(),
                *f"rate {megabits}mbit burst {burst} latency 50ms".split(),
            )

    def inside(self, end: int) -> list[str]:
        return ["ip", "netns", "exec", self.names[end]]

    def sent(self, end: int) -> int:
        """Return the bytes that left a namespace over the link."""
        path = f"/sys/class/net/{self.devices[end]}/statistics/tx_bytes"
        done = subprocess.run(
            [*self.inside(end), "cat", path], check=True, capture_output=True, text=True
        )
        return int(done.stdout)


def start(link: Link, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start a scheduler and a worker on the first host, and a worker on the second."""
    scheduler = f"tcp://{ADDRESSES[0]}:{SCHEDULER_PORT}"
    options = f"--host {ADDRESSES[0]} --port {SCHEDULER_PORT} --no-dashboard"
    commands = [(0, f"scheduler {options}")]
    for end, address in enumerate(ADDRESSES):
        options = f"--host {address} --nthreads 1 --no-dashboard --no-nanny --memory-limit 4GiB"
        options += f" --local-directory {folder / f'worker{end}'}"
        commands.append((end, f"worker {scheduler} {options}"))
    return [
        subprocess.Popen(
            [*link.inside(end), sys.executable, "-m", "dask", *command.split()],
            env={**os.environ, "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error"},
            stdout=subprocess.DEVNULL,
        )
        for end, command in commands
    ]


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Terminate processes, workers first; kill those that do not end within 10 s."""
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def two_hosts(
    script: str, settings: dict[str, Any], folder: str | Path
) -> Iterator[tuple[Link, subprocess.Popen[str]]]:
    """Run a cluster on two hosts, with a script as its client on the first; end all of it.

    Parameters
    ----------
    script : str
        Path of the script, which is started with the option ``--client`` and the settings.
    settings : dict
        Settings of the client, as JSON takes them.
    folder : str or path
        Folder of the stores and the workers.
    """
    with Link() as link:
        os.environ["DASK_ONNX__STORE__DIRECTORY"] = str(Path(folder) / "store")
        processes = start(link, Path(folder))
        client = subprocess.Popen(
            [*link.inside(0), sys.executable, script, "--client", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield link, client
        finally:
            assert client.stdin is not None
            client.stdin.close()
            client.wait(30)
            stop(processes)


def ask(client: subprocess.Popen[str], line: str = "") -> dict[str, Any]:
    """Send a line to the client, if there is one, and return its next answer."""
    assert client.stdin is not None and client.stdout is not None
    if line:
        client.stdin.write(f"{line}\n")
        client.stdin.flush()
    found: dict[str, Any] = json.loads(client.stdout.readline())
    return found


def answer(facts: dict[str, Any]) -> None:
    """Print what `ask` returns to the script that measures."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
