"""Progress of predictions in memory: counted in rows, on a terminal or in a notebook only."""

from __future__ import annotations

import io
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from builders import layers_model
from rich.console import Console

import dask_onnx as dx
from dask_onnx.collections import prediction_progress as progress
from dask_onnx.collections.prediction_progress import TerminalBar, progress_line

ROWS = 30


class Recorded:
    """A display that keeps what it is told."""

    def __init__(self):
        self.shown, self.is_closed = [], False

    def show(self, done, total):
        self.shown.append((done, total))

    def close(self):
        self.is_closed = True


@pytest.fixture
def display(monkeypatch):
    made = Recorded()
    monkeypatch.setattr(progress, "_display", lambda name: made)
    return made


@pytest.fixture
def model():
    return dx.load(layers_model([8] * 3), name="invoices")


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
@pytest.mark.parametrize("strategy", ["whole", "pipeline"])
def test_rows_are_counted_as_their_tasks_complete(model, display, scheduler, strategy):
    x = np.random.default_rng(0).random((ROWS, 8), np.float32)
    plan = model.plan(strategy, **({"n_stages": 2} if strategy == "pipeline" else {}))
    with dask.config.set(scheduler=scheduler):
        found = model.predict(x, plan=plan, batch_size=10, progress=True)
    np.testing.assert_array_equal(found, model.predict(x, plan=plan, batch_size=10))
    done = [count for count, _ in display.shown]
    assert done == sorted(done) and display.shown[0] == (0, ROWS)
    assert display.shown[-1] == (ROWS, ROWS)
    assert {10, 20} & set(done)
    assert display.is_closed


def test_tables_in_memory_have_progress_too(model, display):
    table = pd.DataFrame(np.ones((ROWS, 8), np.float32))
    model.predict(table, batch_size=10, progress=True)
    assert display.shown[-1] == (ROWS, ROWS)


def test_nothing_is_shown_unless_asked_for(model, display):
    model.predict(np.ones((ROWS, 8), np.float32))
    assert display.shown == []


def test_an_error_closes_the_display(model, display):
    with pytest.raises(dx.InputError):
        model.predict(np.ones((ROWS, 7), np.float32), progress=True)
    assert display.is_closed


def test_a_lazy_collection_is_refused(model):
    with pytest.raises(dx.InputError) as caught:
        model.predict(da.ones((ROWS, 8), chunks=(10, 8), dtype="f4"), progress=True)
    assert caught.value.option == "progress"


def test_where_output_is_piped_nothing_is_written(model, capsys):
    model.predict(np.ones((ROWS, 8), np.float32), progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_terminal_gets_a_bar_with_rows_and_rate():
    file = io.StringIO()
    bar = TerminalBar(Console(file=file, force_terminal=True, width=120), "in[red]voices")
    bar.show(10, ROWS)
    bar.show(ROWS, ROWS)
    bar.close()
    text = file.getvalue()
    assert "in[red]voices" in text and "30/30" in text and "rows/s" in text


def test_a_line_has_rows_rate_and_time_left():
    assert progress_line("m", 0, 40, 0.0) == "m: 0 of 40 rows (0%)"
    assert progress_line("m", 10, 40, 5.0) == (
        "m: 10 of 40 rows (25%), 2.0 rows/s, about 15.00 s left"
    )
    assert progress_line("m", 40, 40, 20.0).endswith("2.0 rows/s, in 20.00 s")
    assert progress_line("m", 0, 0, 1.0) == "m: 0 of 0 rows (100%)"


def test_a_notebook_gets_one_output_that_changes(monkeypatch):
    IPython = pytest.importorskip("IPython")  # noqa: N806 - the module's name
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    seconds = iter(range(1000))
    clock = SimpleNamespace(monotonic=lambda: next(seconds) / 100)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(IPython.display, "display", lambda data, **_: Handle())
    line = progress.NotebookLine("m")
    for done in range(101):  # within one second
        line.show(done, 100)
    line.close()
    assert shown[-1].startswith("m: 100 of 100 rows") and 2 < len(shown) < 8
