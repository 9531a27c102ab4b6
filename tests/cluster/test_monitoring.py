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
    rows = {
        labels["stage"]: value
        for labels, value in samples[f"{name}rows_total"]
        if labels["model"] == HOSTILE
    }
    # Both stages of the plan, and the whole model, have all rows in each run of this fixture.
    assert len(rows) == 3 and len(set(rows.values())) == 1
    assert not min(rows.values()) % 40
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


def narrow(block):
    return block[:, :7]


def flat(block):
    return block[0]


@pytest.mark.cluster
@pytest.mark.parametrize(("change", "kind"), [(narrow, "RunError"), (flat, "InputError")])
def test_errors_of_stages_are_counted_by_kind_on_the_scheduler_and_the_workers(
    client, change, kind
):
    name = f"bad{kind}"
    model = dx.load(layers_model([8] * 2), name=name)
    ones = da.from_array(np.ones((8, 8), np.float32), chunks=(8, 8))
    # Its shape is not the one that was announced.
    lazy = model.predict(ones.map_blocks(change, meta=np.ones((0, 0), np.float32)))
    with pytest.raises(getattr(dx, kind)):
        lazy.compute(retries=0)

    def counted():
        return total(
            scrape(dashboard_of(client)), "dask_onnx_scheduler_errors_total", model=name, kind=kind
        )

    tried = wait_for(counted, lambda value: value >= 1)
    assert tried >= 1
    (stage,) = {
        labels["stage"]
        for labels, _ in scrape(dashboard_of(client))["dask_onnx_scheduler_errors_total"]
        if labels["model"] == name
    }
    workers = client.scheduler_info()["workers"].values()
    found = [scrape(f"http://{w['host']}:{w['services']['dashboard']}") for w in workers]
    own = "dask_onnx_worker_errors_total"
    assert sum(total(each, own, stage=stage, kind=kind) for each in found) >= tried


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
    assert len(own) == 6 and "Individual Task Stream" in plots
    for path in own.values():
        assert "bokeh" in get(address + path)


def frames_of(document):
    """Return the data of the tables of a page: streams, links and failures."""
    tables = [each.source.data for each in document.select({"type": DataTable})]
    return (
        next(data for data in tables if "p99" in data),
        next(data for data in tables if "wire" in data),
        next(data for data in tables if "error" in data),
    )


def pairs(data, first, second):
    return list(zip(data[first], data[second], strict=True))


@pytest.mark.cluster
def test_the_page_shows_streams_with_their_dead_letters_and_bytes_of_links(client):
    model = dx.load(layers_model([8] * 4, width=64), name="frames")
    plan = model.plan("fused", n_stages=2).with_placement(dx.Placement((0, 1)))
    good = np.ones((64, 64), np.float32)
    frames = [good, good[:, :7], good]
    with dx.stream(model, frames, plan=plan, on_error="dead_letter", name=HOSTILE) as stream:
        assert len(list(stream)) == 3
    name = "dask_onnx_scheduler_link_bytes_total"
    scraped = wait_for(
        lambda: scrape(dashboard_of(client)),
        lambda found: total(found, name, form="memory") >= 2 * good.nbytes,
    )
    assert total(scraped, name, form="wire") >= 2 * good.nbytes

    def read():
        with pull_session(url=f"{dashboard_of(client)}/onnx") as session:
            return frames_of(session.document)

    streams, links, failures = wait_for(
        read, lambda found: (HOSTILE, "ended") in pairs(found[0], "name", "state")
    )
    number = list(streams["name"]).index(HOSTILE)
    assert (streams["read"][number], streams["done"][number]) == (3, 2)
    assert (streams["failed"][number], streams["state"][number]) == (1, "ended")
    assert ("frame 1", HOSTILE) in pairs(failures, "key", "stage")
    assert len(links["sender"]) and all(links["bytes"])


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
