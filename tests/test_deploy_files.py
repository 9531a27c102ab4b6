"""Files of deployments agree with each other and with the package. What builds them is not run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
KINDS = {
    (each["kind"], each["metadata"]["name"]): each
    for name in ("scheduler", "worker")
    for each in yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def pod(name):
    return KINDS["Deployment", name]["spec"]["template"]["spec"]


def test_preloads_that_are_named_are_modules_with_a_setup():
    texts = [DOCKERFILE, *(str(each) for each in (*KINDS.values(), COMPOSE))]
    names = {name for text in texts for name in re.findall(r"dask_onnx\.\w+", text)}
    assert {"dask_onnx.worker", "dask_onnx.scheduler"} <= names
    for name in names:
        assert hasattr(importlib.import_module(name), "dask_setup"), name


def test_the_image_runs_as_another_user_with_a_store_of_its_own():
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert user != "0" and f"--uid {user}" in DOCKERFILE
    for name in ("dask-scheduler", "dask-worker"):
        security = pod(name)["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == int(user)
    (store,) = re.findall(r"DASK_ONNX__STORE__DIRECTORY=(\S+)", DOCKERFILE)
    (container,) = pod("dask-worker")["containers"]
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod("dask-worker")["volumes"]}
    assert "emptyDir" in volumes[mounts[store]]
    assert any(text.endswith(f":{store}") for text in COMPOSE["services"]["worker"]["volumes"])


def test_probes_look_at_the_port_of_the_dashboard():
    for name in ("dask-scheduler", "dask-worker"):
        (container,) = pod(name)["containers"]
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        text = " ".join(container["args"]).replace("=", " ")
        assert f"--dashboard-address :{ports['dashboard']}" in text
        probes = [value for key, value in container.items() if key.endswith("Probe")]
        assert len(probes) == 2
        for probe in probes:
            assert probe["httpGet"] == {"path": "/health", "port": "dashboard"}


def test_workers_find_the_service_and_fit_their_pod():
    service = KINDS["Service", "dask-scheduler"]
    (container,) = pod("dask-worker")["containers"]
    (port,) = [each["port"] for each in service["spec"]["ports"] if each["name"] == "comm"]
    address = f"tcp://{service['metadata']['name']}:{port}"
    assert container["args"][0] == address
    assert address in str(container["lifecycle"]["preStop"])
    labels = KINDS["Deployment", "dask-scheduler"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    limit = container["resources"]["limits"]["memory"]
    (own,) = [text.partition("=")[2] for text in container["args"] if "memory-limit" in text]
    assert float(own.removesuffix("GiB")) < float(limit.removesuffix("Gi"))
