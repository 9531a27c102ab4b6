"""Traces of OpenTelemetry: one for each request, from the client through scheduler and workers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dask_onnx.core.structured_logs import JsonFormatter, log_event
from dask_onnx.core.tracing import current_carrier, current_trace, span


@pytest.fixture
def exporter(monkeypatch):
    """Exporter of all spans of this process while a test runs."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return kept


def test_a_carrier_continues_a_trace(exporter):
    with span("request", model="m"):
        carrier = current_carrier()
    with span("stage", carrier, rows=3):
        pass
    request, stage = exporter.get_finished_spans()
    assert (request.name, stage.name) == ("dask_onnx.request", "dask_onnx.stage")
    assert stage.context.trace_id == request.context.trace_id
    assert stage.parent.span_id == request.context.span_id
    assert dict(stage.attributes) == {"dask_onnx.rows": 3}


def test_an_error_is_part_of_its_span(exporter):
    with pytest.raises(ValueError), span("stage"):  # noqa: PT011 - raised here
        raise ValueError("no")
    (found,) = exporter.get_finished_spans()
    assert found.status.status_code.name == "ERROR"
    assert found.events[0].name == "exception"


def test_without_opentelemetry_nothing_is_imported_or_carried():
    code = (
        "import sys\n"
        "from dask_onnx.core.tracing import current_carrier, current_trace, span\n"
        "with span('request', model='m'):\n"
        "    assert current_carrier() == () and current_trace() == {}\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_logs_have_a_sentence_and_fields_and_the_trace(exporter, caplog):
    log = logging.getLogger("dask_onnx.test")
    with caplog.at_level(logging.INFO, "dask_onnx"), span("request"):
        expected = current_trace()
        log_event(log, logging.INFO, "session built", stage="a\x1bb", seconds=0.25)
        log_event(log, logging.DEBUG, "not shown")
        line = json.loads(JsonFormatter().format(caplog.records[0]))
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage() == "session built: stage=a\\x1bb, seconds=0.25"
    assert line["event"] == "session built" and line["seconds"] == 0.25
    assert {name: line[name] for name in expected} == expected and len(expected) == 2
    assert line["logger"] == "dask_onnx.test" and line["level"] == "INFO"
