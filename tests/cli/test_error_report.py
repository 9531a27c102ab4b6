"""Errors on the command line, from their fields."""

from __future__ import annotations

import json

import click
import pytest

from dask_onnx.cli.error_report import (
    ErrorReport,
    in_flags,
    in_options,
    report_of,
    suggested_options,
)
from dask_onnx.cli.plan_command import command as plan_command
from dask_onnx.cli.predict_command import command as predict_command
from dask_onnx.core.errors import InputError, PlanError, StageError, Suggestion


@click.command
@click.option("--n-stages", type=int)
@click.option("--memory-limit", metavar="SIZE")
@click.option("--shape", "shapes", metavar="NAME=N,N,...")
@click.option("--cut-at")
@click.option("--strategy")
@click.option("--yes", is_flag=True)
def command(**_):
    pass


def step(*suggestions, option=None):
    return suggested_options(PlanError("c", "n", option=option, suggestions=suggestions), command)


@pytest.mark.parametrize(
    ("suggestions", "text"),
    [
        ([Suggestion("n_stages", 4)], "try --n-stages 4"),
        ([Suggestion("n_stages", 4), Suggestion("memory_limit")],
         "try --n-stages 4, or --memory-limit SIZE"),
        ([Suggestion("strategy", "fused"), Suggestion("strategy", "pipeline")],
         "try --strategy fused or pipeline"),
        ([Suggestion("shapes", {"x": (1, 3)})], "try --shape x=1,3"),
        ([Suggestion("values", ["a", "b c"])], "try --cut-at 'a,b c'"),
        ([Suggestion("yes", True)], "try --yes"),
        ([Suggestion("exact", False)], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_suggestions_are_options_of_the_command(suggestions, text):
    assert step(*suggestions) == text


def test_an_option_at_fault_is_not_suggested_without_a_value():
    assert step(Suggestion("n_stages"), Suggestion("strategy", "a"), option="n_stages") == (
        "try --strategy a"
    )


def test_without_a_command_the_next_step_is_that_of_the_error():
    error = PlanError("cause", "give n_stages=2", suggestions=[Suggestion("n_stages", 2)])
    assert report_of(error, None).next_step == "give n_stages=2"
    assert report_of(error, command).next_step == "try --n-stages 2"


def test_a_cause_begins_with_the_option_at_fault():
    assert report_of(PlanError("is 0", option="n_stages"), command).cause == "--n-stages: is 0"
    named = PlanError("--n-stages is 0", option="n_stages")
    assert report_of(named, command).cause == "--n-stages is 0"
    assert report_of(InputError("no\nsuch", option="other"), command).cause == "no such"


def test_json_has_the_fields(capsys):
    suggestions = [Suggestion("n_stages", 4), Suggestion("strategy", object)]
    error = PlanError("cause", "next", option="x", numbers={"a": 1}, suggestions=suggestions)
    report_of(error, None).show(as_json=True)
    printed = json.loads(capsys.readouterr().out)["error"]
    assert printed["kind"] == "PlanError" and printed["next_step"] == "next"
    assert printed["fields"]["option"] == "x" and printed["fields"]["numbers"] == {"a": 1}
    assert printed["fields"]["suggestions"][0] == {"option": "n_stages", "value": 4}


def test_text_goes_to_the_standard_error(capsys):
    ErrorReport("InputError", "cause", "next").show(as_json=False)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "error: cause\n       next\n"


def test_a_suggestion_that_a_command_does_not_take_is_as_in_python():
    assert in_options(Suggestion("n_stages", 2), command) == "--n-stages 2"
    assert in_options(Suggestion("exact", False), command) == "exact=False"


def test_the_memory_of_a_stage_is_not_that_of_a_worker():
    error = PlanError("c", suggestions=[Suggestion("n_stages", 2), Suggestion("memory_limit")])
    assert suggested_options(error, plan_command) == "try --n-stages 2, or --memory-limit SIZE"
    assert suggested_options(error, predict_command) == "try --n-stages 2"
    worker = StageError("c", suggestions=[Suggestion("worker_memory_limit", "4GiB")])
    assert suggested_options(worker, predict_command) == "try --memory-limit 4GiB"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pass overwrite=True to replace it", "pass --overwrite to replace it"),
        ("go on with resume=True (--resume)", "go on with --resume"),
        ("name them: columns=[...]", "name them: --columns NAME,..."),
        ("name them: columns=['a', 'b c']", "name them: --columns 'a,b c'"),
        ("pass columns={'x': ['a', 'b'], ...}", "pass --feed INPUT=COLUMN"),
        ("state it: dtype={'zip': 'string'}", "state it: --dtype zip=string"),
        ("choose outputs=, or change post=", "choose --outputs, or change --post"),
        ("use resize='letterbox=640'", "use --resize letterbox=640"),
        ("declare it: dx.load(..., rows='none')", "declare it: --rows none"),
        ("one chunk and batch_size=None", "one chunk and batch_size=None"),
        ("overwrite=False", "overwrite=False"),
        ("pd.read_excel(path, dtype=...)", "pd.read_excel(path, dtype=...)"),
        ("leave checkpoint='a' out, x=0", "leave checkpoint='a' out, x=0"),
    ],
)
def test_options_of_python_in_a_next_step_are_those_of_the_command(text, expected):
    assert in_flags(text, predict_command) == expected


def test_what_a_flag_does_is_told_and_the_flag_is_not_at_fault():
    error = InputError(
        "the output exists",
        "choose another name, or pass overwrite=True to replace it",
        option="overwrite",
        suggestions=[Suggestion("overwrite", True)],
    )
    report = report_of(error, predict_command)
    assert report.cause == "the output exists"
    assert report.next_step == "choose another name, or pass --overwrite to replace it"
    both = InputError("both were given", "leave one out", option="overwrite")
    assert report_of(both, predict_command).cause == "--overwrite: both were given"
