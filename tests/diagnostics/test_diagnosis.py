"""Diagnosis of a cluster from what its sides answered: what is broken, and what leaves no trace."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import dask_onnx as dx
from dask_onnx.cluster.cluster_probe import ClusterAnswers, Side
from dask_onnx.cluster.placement import CompressionPlugin, RecordedRunsPlugin
from dask_onnx.cluster.scheduler_plugin import PLUGIN_NAME
from dask_onnx.diagnostics.diagnosis import diagnosis_of
from dask_onnx.diagnostics.findings import without_secrets

ADDRESSES = ("tcp://10.0.0.1:1", "tcp://10.0.0.2:1")
VERSIONS = {"python": "3.12.1", "dask-onnx": "1.0", "onnxruntime": "1.30.0", "lz4": "4.4"}
VERSIONS |= dict.fromkeys(("dask", "distributed", "cloudpickle", "msgpack", "numpy"), "2")
STORE = {
    "folder": "/data/store",
    "used_bytes": 10**9,
    "free_bytes": 10**11,
    "max_bytes": 2 * 10**10,
    "models": 3,
    "error": "",
}
PACKAGE = {
    "cores": 4,
    "compression": "lz4",
    "version_mismatch": "error",
    "unknown_keys": [],
    "store": STORE,
}
WORKER = {
    "host": "10.0.0.1",
    "status": "running",
    "threads": 2,
    "memory_limit": 2**30,
    "memory": 2**27,
    "spilled_bytes": 0,
    "seconds_silent": 0.5,
    "loop_seconds": 0.02,
    "processing": 0,
    "running": {},
}


def side(name, **changes):
    """Return the answer of a healthy process."""
    details = {
        "plugins": [CompressionPlugin.name, RecordedRunsPlugin.name],
        "threads": 2,
        "memory_limit": 2**30,
        "variables": {},
    }
    made = Side(name, VERSIONS, 0.0, 0.001, PACKAGE, "", details, host=f"host of {name}")
    return dataclasses.replace(made, **changes)


def cluster(scheduler=None, workers=(), details=None, **worker):
    """Return the answers of a healthy cluster with some changes."""
    known = {
        "plugins": [PLUGIN_NAME],
        "worker_ttl": 300,
        "workers": {ADDRESSES[0]: {**WORKER, **worker}, ADDRESSES[1]: WORKER},
        "bandwidths": [],
        "states": {},
        "no_worker": [],
        "waiting": [],
        "erred": [],
        "expected": {},
        **(details or {}),
    }
    return ClusterAnswers(
        dataclasses.replace(side("client"), details={}),
        scheduler or side("scheduler", details=known),
        tuple(workers) or tuple(map(side, ADDRESSES)),
    )


def broken(answers):
    """Return topic and subject of everything that is broken."""
    found = diagnosis_of(answers)
    assert found.is_broken == any(each.level == "broken" for each in found.findings)
    assert all(each.next_step for each in found.findings if each.level == "broken" and each.subject)
    return [(each.topic, each.subject) for each in found.findings if each.level == "broken"]


def test_a_healthy_cluster_has_nothing_but_what_is_fine():
    found = diagnosis_of(cluster())
    assert not found.is_broken
    assert {each.level for each in found.findings} == {"ok"}
    assert {each.topic for each in found.findings} >= {
        "versions",
        "clocks",
        "stores",
        "tasks",
        "threads",
        "workers",
    }


WITH = {name: {**VERSIONS, name: "0.9"} for name in ("onnxruntime", "dask-onnx")}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (cluster(workers=[side(ADDRESSES[0], versions=WITH["onnxruntime"])]), "versions"),
        (cluster(workers=[side(ADDRESSES[0], versions=WITH["dask-onnx"])]), "versions"),
        (cluster(workers=[side(ADDRESSES[0], package=None, package_error="none")]), "versions"),
        (
            cluster(workers=[side(ADDRESSES[0], versions={**VERSIONS, "python": "3.13.0"})]),
            "versions",
        ),
        (cluster(workers=[side(ADDRESSES[0], clock_offset=60.0)]), "clocks"),
        (cluster(workers=[side(ADDRESSES[0], clock_offset=-60.0)]), "clocks"),
        (cluster(workers=[side(ADDRESSES[0], error="TimeoutError: 5 s")]), "answers"),
        (cluster(status="paused"), "workers"),
        (cluster(status="closing_gracefully"), "workers"),
        (cluster(seconds_silent=100.0), "workers"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_broken_is_told_with_the_worker(answers, expected):
    assert (expected, ADDRESSES[0]) in broken(answers)


@pytest.mark.parametrize(
    "changes",
    [
        {"free_bytes": 10**6},
        {"used_bytes": 3 * 10**10},
        {"error": "PermissionError: others can write to it"},
    ],
)
def test_a_store_without_room_is_broken(changes):
    package = {**PACKAGE, "store": {**STORE, **changes}}
    assert ("stores", ADDRESSES[0]) in broken(
        cluster(workers=[side(ADDRESSES[0], package=package)])
    )


def test_a_scheduler_without_the_package_is_broken():
    healthy = cluster().scheduler
    lacks = dataclasses.replace(healthy, package=None, package_error="No module named 'dask_onnx'")
    assert ("versions", "scheduler") in broken(cluster(lacks))


def test_a_clock_is_judged_within_the_error_of_the_question():
    slow = side(ADDRESSES[0], clock_offset=2.0, clock_error=1.9)
    assert broken(cluster(workers=[slow])) == []


def test_versions_that_may_differ_by_configuration_are_a_note():
    package = {**PACKAGE, "version_mismatch": "warn"}
    other = side(ADDRESSES[0], versions=WITH["onnxruntime"], package=package)
    found = diagnosis_of(cluster(workers=[other]))
    assert not found.is_broken
    assert [each.topic for each in found.findings if each.level == "note"] == ["versions"]


@pytest.mark.parametrize(
    ("wants", "reason"),
    [
        ({"workers": ["tcp://gone:1"], "hosts": [], "resources": {}}, "tcp://gone:1"),
        ({"workers": [], "hosts": [], "resources": {"GPU": 1.0}}, "GPU=1"),
        ({"workers": [], "hosts": ["far"], "resources": {}}, "far"),
    ],
)
def test_a_task_that_no_worker_may_run_says_what_it_needs(wants, reason):
    details = {"no_worker": [("t", wants)], "states": {"no-worker": 1}}
    found = diagnosis_of(cluster(details=details)).findings[0]
    assert (found.level, found.topic, found.subject) == ("broken", "tasks", "t")
    assert reason in found.cause


def test_tasks_that_wait_while_nothing_runs_are_broken():
    waiting = {"waiting": [("t", [("u", "erred")])], "states": {"waiting": 1}}
    assert ("tasks", "t") in broken(cluster(details=waiting))
    moving = {**waiting, "states": {"waiting": 1, "processing": 1}}
    assert broken(cluster(details=moving)) == []


def test_a_straggler_is_named_with_what_others_take():
    running = {"slow-1": ("slow", 60.0), "slow-2": ("slow", 2.0), "new-1": ("new", 60.0)}
    found = diagnosis_of(cluster(details={"expected": {"slow": 1.0}}, running=running))
    notes = [each for each in found.findings if each.level == "note"]
    assert [(each.topic, each.subject) for each in notes] == [("stragglers", "slow-1")]
    assert notes[0].numbers == {"seconds": 60.0, "expected_seconds": 1.0}


def test_more_threads_than_cores_and_no_memory_limit_are_notes():
    crowd = side(ADDRESSES[0])
    crowd = dataclasses.replace(
        crowd, details={**crowd.details, "threads": 9, "memory_limit": None}
    )
    found = diagnosis_of(cluster(workers=[crowd]))
    assert {each.topic for each in found.findings if each.level == "note"} == {"threads", "memory"}
    assert not found.is_broken


SECRETS = [
    "tls://user:hunter2@host:8786",
    "https://bucket/model.onnx?X-Amz-Signature=hunter2&x=1",
    "password = hunter2",
    "api_key='hunter2'",
    "AWS_SECRET_ACCESS_KEY: hunter2",
    "Authorization: Bearer hunter2hunter2",
    f"{Path.home()}/hunter/hunter2".replace("hunter2", "x"),
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_left_out_of_text_and_json(text):
    lost = side(ADDRESSES[0], error=f"OSError: {text}")
    found = diagnosis_of(cluster(workers=[lost]))
    for shown in (str(found), json.dumps(found.as_dict()), without_secrets(text)):
        assert "hunter2" not in shown
        assert str(Path.home()) not in shown or str(Path.home()) == "/"


def test_without_a_cluster_this_host_is_diagnosed(store_directory):
    found = dx.diagnose()
    assert isinstance(found, dx.Diagnosis)
    assert [each.name for each in found.answers.sides] == ["client"]
    assert found.answers.client.package["store"]["folder"] == store_directory
    json.dumps(found.as_dict())
