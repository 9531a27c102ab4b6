"""Checks of a cluster's processes: versions, clocks, stores, threads, memory and plugins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from dask_onnx.cluster.cluster_probe import ClusterAnswers, Side
from dask_onnx.cluster.placement import CompressionPlugin, RecordedRunsPlugin
from dask_onnx.cluster.scheduler_plugin import PLUGIN_NAME
from dask_onnx.core.formatting import format_bytes, format_count, format_seconds
from dask_onnx.diagnostics.findings import Finding

_MOST_CLOCK_SECONDS = 1.0
"""Difference of clocks above which times that hosts note cannot be compared."""
_LEAST_FREE_BYTES = 512 * 2**20
"""Free bytes of a store's file system below which a model may not fit."""
_MUST_AGREE = ("dask-onnx", "onnxruntime")
"""Packages without whose version on each worker a stage is refused."""
_SHOULD_AGREE = ("dask", "distributed", "cloudpickle", "msgpack", "numpy")
"""Packages that exchange pickled values, and may fail to with other versions."""
_MOST_SILENT_SECONDS = 30.0
_MOST_MEMORY_SHARE = 0.8
"""Share of a worker's memory limit at which Dask pauses it by default."""


def check_answers(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield the sides that did not answer."""
    silent = [side for side in answers.sides if side.error]
    for side in silent:
        step = "look at its log; restart it if it hangs"
        yield Finding("broken", "answers", side.name, f"did not answer: {side.error}", step)
    if answers.scheduler is not None and not answers.workers and not answers.scheduler.error:
        step = "start some: `dask worker ADDRESS`, or scale the cluster up"
        yield Finding("broken", "answers", "", "the cluster has no workers", step)
    elif not silent:
        count = format_count(len(answers.sides), "process", "es")
        yield Finding("ok", "answers", "", f"{count} answered")


def check_versions(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield packages whose versions differ from the client's, or that are missing."""
    here = answers.client.versions
    if here["onnxruntime"] is None and answers.scheduler is None:
        step = "pip install onnxruntime"
        yield Finding("broken", "versions", "client", "onnxruntime is not installed", step)
    is_sound = True
    for side in answers.sides[1:]:
        for finding in _compare(side, here):
            is_sound = False
            yield finding
    if is_sound:
        known = (f"{name} {version}" for name, version in here.items() if version)
        yield Finding("ok", "versions", "", ", ".join(known))


def _compare(side: Side, here: Mapping[str, str | None]) -> Iterator[Finding]:
    if side.error:
        return
    if side.package_error:
        step = "install dask-onnx there, of the client's version"
        if side.name == "scheduler":
            step += "; without it retries, placements and schedules do not reach the tasks"
        cause = f"dask_onnx cannot be imported: {side.package_error}"
        yield Finding("broken", "versions", side.name, cause, step)
    names = (*_MUST_AGREE, *_SHOULD_AGREE) if side.name != "scheduler" else _SHOULD_AGREE
    for name in names:
        there = side.versions.get(name)
        if there == here.get(name) or (name == "dask-onnx" and side.package_error):
            continue
        must = name in _MUST_AGREE
        if name == "onnxruntime" and here.get(name) is None:
            continue  # a client may plan without it
        is_allowed = must and (side.package or {}).get("version_mismatch") == "warn"
        cause = f"{name} is {there or 'not installed'}, and {here.get(name)} at the client"
        step = f"install {name}=={here.get(name)} there"
        if is_allowed:
            step += "; onnx.version-mismatch is 'warn' there, so that results may differ"
        elif must:
            step += ": stages are refused until then"
        level = "broken" if must and not is_allowed else "note"
        yield Finding("broken" if level == "broken" else "note", "versions", side.name, cause, step)
    theirs, ours = (str(each["python"]).split(".")[:2] for each in (side.versions, here))
    if theirs != ours:
        cause = f"Python is {'.'.join(theirs)}, and {'.'.join(ours)} at the client"
        step = "use one minor version everywhere: functions are sent as byte code"
        yield Finding("broken", "versions", side.name, cause, step)


def check_clocks(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield the sides whose clocks differ from the client's by more than can be neglected."""
    others = [side for side in answers.sides[1:] if not side.error]
    off = [s for s in others if abs(s.clock_offset) - s.clock_error > _MOST_CLOCK_SECONDS]
    for side in off:
        way = "ahead of" if side.clock_offset > 0 else "behind"
        yield Finding(
            "broken",
            "clocks",
            side.name,
            f"its clock is {abs(side.clock_offset):.1f} s {way} the client's",
            "synchronise the hosts' clocks (NTP): times of tasks and transfers cannot be compared",
            {"offset_seconds": side.clock_offset, "error_seconds": side.clock_error},
        )
    if others and not off:
        most = max(abs(side.clock_offset) + side.clock_error for side in others)
        yield Finding("ok", "clocks", "", f"within {format_seconds(most)} of the client's")


def check_stores(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield the stores that cannot be used, or have no room for another model."""
    folders, told = set(), set()
    for side in answers.sides:
        if side.package is None:
            continue
        store = side.package["store"]
        folders.add((side.host, store["folder"]))
        for finding in _store_findings(side.name, store):
            # Processes of a host tell the same of a folder that they share.
            if (side.host, finding.cause) not in told:
                told.add((side.host, finding.cause))
                yield finding
    if folders and not told:
        yield Finding("ok", "stores", "", f"{format_count(len(folders), 'folder')} with room")


def _store_findings(name: str, store: Mapping[str, Any]) -> Iterator[Finding]:
    folder = store["folder"]
    if store["error"]:
        step = "set onnx.store.directory to a folder that this user alone can write to"
        yield Finding("broken", "stores", name, f"{folder}: {store['error']}", step)
        return
    free, used, most = (store[key] for key in ("free_bytes", "used_bytes", "max_bytes"))
    numbers = {"free_bytes": free, "used_bytes": used, "max_bytes": most}
    if free < _LEAST_FREE_BYTES:
        cause = f"{folder}: {format_bytes(free)} are free on its disk"
        step = "free some space, or set onnx.store.directory to another disk"
        yield Finding("broken", "stores", name, cause, step, numbers)
    if used > most:
        cause = (
            f"{folder}: {format_count(store['models'], 'model')} of {format_bytes(used)}, above "
            f"the limit of {format_bytes(most)}: models in use are not evicted"
        )
        step = "`dask-onnx store prune` there, or raise onnx.store.max-bytes"
        yield Finding("broken", "stores", name, cause, step, numbers)


def check_workers(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield the workers that take no tasks, are silent, or are short of memory."""
    if answers.scheduler is None:
        return
    is_sound = True
    for address, worker in answers.scheduler.details.get("workers", {}).items():
        for finding in _worker_findings(address, worker):
            is_sound = False
            yield finding
    if is_sound and answers.workers:
        count = format_count(len(answers.workers), "worker")
        yield Finding("ok", "workers", "", f"{count}, and none is paused or silent")


def _worker_findings(address: str, worker: Mapping[str, Any]) -> Iterator[Finding]:
    memory, limit = worker["memory"], worker["memory_limit"]
    share = memory / limit if limit else 0.0
    holds = format_bytes(memory) + (f" of {format_bytes(limit)}" if limit else "")
    numbers = {"memory_bytes": memory, "memory_limit_bytes": limit or 0}
    if worker["status"] == "paused":
        step = "give it more memory, release results, or cut the model: plan(memory_limit=...)"
        cause = f"is paused and takes no tasks; it holds {holds}"
        yield Finding("broken", "workers", address, cause, step, numbers)
    elif worker["status"] != "running":
        cause = f"is {worker['status'].replace('_', ' ')} and takes no tasks"
        yield Finding("broken", "workers", address, cause, "wait until it has closed", numbers)
    elif share > _MOST_MEMORY_SHARE:
        step = "Dask is about to pause it: give it more memory, or smaller chunks"
        yield Finding("note", "workers", address, f"holds {holds}", step, numbers)
    if worker["seconds_silent"] > _MOST_SILENT_SECONDS:
        cause = f"has sent no heartbeat for {worker['seconds_silent']:.0f} s"
        step = "see whether its host is up and its event loop is free"
        seconds = {"silent_seconds": worker["seconds_silent"]}
        yield Finding("broken", "workers", address, cause, step, seconds)


def check_threads(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield hosts whose workers have more threads together than cores."""
    threads: defaultdict[str, int] = defaultdict(int)
    cores: dict[str, int] = {}
    for side in answers.workers:
        host = side.host or side.name
        threads[host] += side.details.get("threads", 0)
        if side.package is not None:
            cores[host] = side.package["cores"]
    crowded = {host: n for host, n in threads.items() if n > cores.get(host, n)}
    for host, count in crowded.items():
        cause = f"{format_count(count, 'thread')} of workers share {cores[host]} cores"
        step = "start workers with as many threads together as there are cores: --nthreads"
        numbers = {"threads": count, "cores": cores[host]}
        yield Finding("note", "threads", host, cause, step, numbers)
    if threads and not crowded:
        total = format_count(sum(threads.values()), "thread")
        yield Finding("ok", "threads", "", f"{total} on {format_count(len(threads), 'host')}")


def check_plugins(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield where plugins, compression or memory limits are not as dask_onnx sets them."""
    if answers.scheduler is None or answers.scheduler.error:
        return
    step = "dx.configure(client); the first prediction of a client does so by itself"
    lacking = PLUGIN_NAME not in answers.scheduler.details["plugins"]
    if lacking:
        cause = "the plugin of dask_onnx is not registered"
        yield Finding("note", "plugins", "scheduler", cause, step)
    needed = {CompressionPlugin.name, RecordedRunsPlugin.name}
    for side in answers.workers:
        missing = needed - set(side.details.get("plugins", needed))
        if missing and not side.error and not lacking:
            yield Finding("note", "plugins", side.name, f"lacks {', '.join(sorted(missing))}", step)
    unlimited = [s for s in answers.workers if not s.error and not s.details.get("memory_limit")]
    if unlimited:
        cause = f"{format_count(len(unlimited), 'worker')} have no memory limit"
        step = "start workers with --memory-limit: plans then cannot fill a host's memory unseen"
        yield Finding("note", "memory", "", cause, step, {"workers": len(unlimited)})
    for side in answers.sides:
        for key in (side.package or {}).get("unknown_keys", ()):
            yield Finding("note", "configuration", side.name, key, "correct or remove it")


def check_links(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield what is known of the links between workers, and of compression on them."""
    if answers.scheduler is None or answers.scheduler.error:
        return
    workers = answers.scheduler.details["workers"]
    hosts = {worker["host"] for worker in workers.values()}
    for one, other, rate in sorted(answers.scheduler.details["bandwidths"]):
        cause = f"from {other}: {format_bytes(rate)}/s in recent transfers"
        yield Finding("ok", "links", one, cause, "", {"bytes_per_second": rate})
    if len(hosts) < 2:
        return
    for side in answers.workers:
        if side.package is None:
            continue
        if side.versions.get("lz4") is None:
            step = "pip install lz4: values between hosts are sent uncompressed"
            yield Finding("note", "links", side.name, "lz4 is not installed", step)
        elif side.package["compression"] in ("None", "False"):
            step = "dx.configure(client) switches lz4 on, unless the setting was given"
            cause = "distributed.comm.compression is off"
            yield Finding("note", "links", side.name, cause, step)
