"""A request is one trace, through the client, the scheduler and the workers."""

from __future__ import annotations

import numpy as np
import pytest
from builders import layers_model
from distributed import Client, LocalCluster
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import dask_onnx as dx


@pytest.mark.cluster
def test_each_request_is_one_trace_of_client_scheduler_and_workers(monkeypatch):
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    model = dx.load(layers_model([8] * 4))
    plan = model.plan("pipeline", n_stages=2)
    x = np.ones((6, 8), np.float32)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        kept.clear()
        for number in range(2):
            model.predict(x + number, plan=plan, batch_size=3)
    traces = {}
    for each in kept.get_finished_spans():
        traces.setdefault(each.context.trace_id, []).append(each)
    assert len(traces) == 2
    for spans in traces.values():
        names = sorted(each.name for each in spans)
        assert names.count("dask_onnx.predict") == 1
        assert names.count("dask_onnx.schedule") == 1
        assert names.count("dask_onnx.stage") == 4  # two stages on two batches
        labels = {each.attributes.get("dask_onnx.stage") for each in spans} - {None}
        assert labels == {stage.label for stage in plan.stages}
