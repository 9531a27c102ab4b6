"""Metrics for Prometheus and the page ``/onnx`` of a running cluster, as they are served."""

from __future__ import annotations

import json
import time
import urllib.request

import dask.array as da
import numpy as np
import pytest
from bokeh.client import pull_session
from bokeh.models import DataTable, Div
from builders import layers_model
from distributed import LocalCluster
from prometheus_client.parser import text_string_to_metric_families

import dask_onnx as dx
from dask_onnx.cluster.metric_families import FROM_DIGESTS, OF_SCHEDULER, full_names

HOSTILE = "bill<img src=x onerror=alert(1)>"


def get(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read().decode()


def scrape(address):
    """Return the samples of /metrics by name, each as labels and value."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(get(f"{address}/metrics")):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def dashboard_of(client):
    return client.dashboard_link.removesuffix("/status")


def total(samples, name, **labels):
    return sum(value for own, value in samples.get(name, ()) if labels.items() <= own.items())


def wait_for(read, is_there):
    """Return what `read` returns once it has what heartbeats bring, within some seconds."""
    until = time.monotonic() + 30
    while not is_there(found := read()) and time.monotonic() < until:
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def cluster(store_directory):
    """Cluster of these tests alone: its metrics add up all that has run on it."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def ran(client):
    """Client of a cluster on which a plan of two stages and a fused model have run."""
    model = dx.load(layers_model([8] * 4), name=HOSTILE)
    x = da.from_array(np.ones((40, 8), np.float32), chunks=(5, 8))
    plan = model.plan(strategy="fused", n_stages=2)
    plan.predict(x).compute()
    # No other test on this cluster fuses a model with a product.
    model.predict(x).prod().compute()
    return client


@pytest.mark.cluster
def test_a_scrape_of_the_scheduler_has_rows_seconds_and_histograms_of_each_stage(ran):
    name = "dask_onnx_scheduler_"
    samples = wait_for(
        lambda: scrape(dashboard_of(ran)),
        lambda found: total(found, f"{name}batches_total", model=HOSTILE) >= 24,
    )
    assert total(samples, f"{name}rows_total", model=HOSTILE) >= 80
    assert total(samples, f"{name}phase_seconds_total", model=HOSTILE, phase="run") > 0
    count = total(samples, f"{name}task_seconds_count", model=HOSTILE)
    assert count == total(samples, f"{name}tasks_ended_total", model=HOSTILE, outcome="completed")
    assert count == total(samples, f"{name}task_seconds_bucket", model=HOSTILE, le="+Inf") >= 24
    assert total(samples, f"{name}wait_seconds_count", model=HOSTILE) == count
    # A model that Dask has fused with what follows has one name in all series.
    stages = {labels["stage"] for labels, _ in samples[f"{name}batches_total"]}
    assert "prod" not in stages and any(stage.endswith("-prod") for stage in stages)
    known = full_names((*FROM_DIGESTS, *OF_SCHEDULER), name)
    for own in samples:
        base = own.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        assert not own.startswith(name) or own in known or base in known


@pytest.mark.cluster
def test_a_scrape_of_each_worker_adds_up_to_what_the_scheduler_has(ran):
    def read():
        workers = ran.scheduler_info()["workers"].values()
        return [scrape(f"http://{w['host']}:{w['services']['dashboard']}") for w in workers]

    found = read()
    assert all("dask_onnx_worker_sessions" in samples for samples in found)
    assert sum(total(samples, "dask_onnx_worker_sessions") for samples in found) > 0
    counted = sum(total(samples, "dask_onnx_worker_batches_total") for samples in found)
    whole = wait_for(
        lambda: total(scrape(dashboard_of(ran)), "dask_onnx_scheduler_batches_total"),
        lambda value: value >= counted,
    )
    # The scheduler also has the batches of workers that are gone.
    assert whole >= counted > 0


@pytest.mark.cluster
def test_tasks_that_fail_are_counted_and_shown_with_their_error(client):
    model = dx.load(layers_model([8] * 2), name="receipts")
    ones = da.from_array(np.ones((8, 8), np.float32), chunks=(8, 8))
    lazy = model.predict(ones.map_blocks(fail, meta=np.ones((0, 0), np.float32)))
    with pytest.raises(ValueError, match="no input"):
        lazy.compute()
    name = "dask_onnx_scheduler_tasks_ended_total"
    samples = wait_for(
        lambda: scrape(dashboard_of(client)),
        lambda found: total(found, name, model="receipts", outcome="erred") >= 1,
    )
    assert total(samples, name, model="receipts", outcome="erred") >= 1


def fail(block):
    raise ValueError("no input")


@pytest.mark.cluster
def test_the_page_shows_stages_and_workers_and_escapes_names(ran):
    address = dashboard_of(ran)
    page = get(f"{address}/onnx")
    assert "<img src=x" not in page and 'href="onnx"' in page
    with pull_session(url=f"{address}/onnx") as session:
        document = session.document
        tables = [each.source.data for each in document.select({"type": DataTable})]
        stages = next(data for data in tables if "transfer" in data)
        rows = dict(zip(stages["name"], stages["done"], strict=True))
        own = [n for n, m in zip(stages["name"], stages["model"], strict=True) if m == HOSTILE]
        assert len(own) >= 3 and all(rows[name] >= 8 for name in own)
        workers = next(data for data in tables if "sessions" in data)
        assert set(workers["address"]) == set(ran.scheduler_info()["workers"])
        text = "".join(each.text for each in document.select({"type": Div}))
        assert "<img src=x" not in text and "nothing to do" in text


@pytest.mark.cluster
def test_the_parts_of_the_page_are_panels_of_the_notebook_extension(client):
    address = dashboard_of(client)
    plots = json.loads(get(f"{address}/individual-plots.json"))
    own = {name: path for name, path in plots.items() if "Onnx" in name}
    assert len(own) == 5 and "Individual Task Stream" in plots
    for path in own.values():
        assert "bokeh" in get(address + path)


@pytest.mark.cluster
def test_pages_are_added_once(client):
    dx.configure(client)

    def pages(dask_scheduler):
        return [
            path for app in dask_scheduler.http_application.applications
            for path in getattr(app, "app_paths", ())
        ]  # fmt: skip

    # Dask's own application names it for the extension, and ours serves it.
    assert client.run_on_scheduler(pages).count("/onnx") == 2
