"""The command ``dask-onnx predict``: options of `predict_files`, progress, and the result."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
from distributed import Client
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dask_onnx.api.loading import load
from dask_onnx.cli import Options, common_options
from dask_onnx.cli.parameters import (
    cluster_options,
    configuration_option,
    find_in_current_folder,
    is_untrusted,
    n_stages_option,
    named_strategy,
    outputs_option,
    parse_rows,
    rows_option,
    split_names,
    strategy_option,
    trusted_option,
)
from dask_onnx.cli.picture_options import picture_options, take_picture_options
from dask_onnx.cli.printing import echo
from dask_onnx.cli.profile_output import recorded
from dask_onnx.cli.table_options import parse_dtypes, parse_missing
from dask_onnx.collections.run_options import Columns
from dask_onnx.core.errors import InputError
from dask_onnx.core.formatting import format_count, printable_lines
from dask_onnx.jobs.file_prediction import predict_files
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.tiles.predict import Tile


@click.command("predict")
@click.argument("model_path", metavar="MODEL")
@click.argument("input_path", metavar="INPUT")
@click.argument("output_path", metavar="OUTPUT")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows of a run; tuned by default.",
)
@click.option(
    "--block-rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows of a block, which a task reads and writes.",
)
@strategy_option
@configuration_option
@n_stages_option
@rows_option
@trusted_option
@outputs_option
@cluster_options
@click.option(
    "--memory-limit",
    "worker_memory_limit",
    metavar="SIZE",
    help="Memory of a process, such as 4GiB; its share by default.",
)
@click.option("--pre", metavar="MODULE:FUNCTION", help="From a block as it was read to the input.")
@click.option("--post", metavar="MODULE:FUNCTION", help="From a block of output to the result.")
@click.option("--retries", type=click.IntRange(min=0), help="Of a block that fails; 3 by default.")
@click.option(
    "--tile",
    metavar="auto|N|N,N",
    help="Run INPUT, one large raster (.tif, .npy, .zarr, .png), in tiles of so many pixels.",
)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists or was begun.")
@click.option("--resume", is_flag=True, help="Go on with a run that failed or was ended.")
@click.option(
    "--shard", type=click.IntRange(min=0), metavar="I", help="Part that this run takes, from 0."
)
@click.option("--of", type=click.IntRange(min=1), metavar="N", help="Runs that share INPUT.")
@click.option("--watch-model", is_flag=True, help="Go over to MODEL as it changes, between blocks.")
@click.option(
    "--columns", metavar="NAME,...", help="Of a table, for the one input; numeric ones by default."
)
@click.option("--feed", "feeds", multiple=True, metavar="INPUT=COLUMN", help="Column of an input.")
@click.option("--text", metavar="COLUMN", help="Column of text, for a text encoder.")
@click.option("--tokenizer", metavar="FILE", help="tokenizer.json for --text.")
@click.option("--pooling", type=click.Choice(["mean", "max", "first"]), default="mean")
@click.option("--normalize", is_flag=True, help="Give the vectors of texts a length of 1.")
@click.option("--keep", metavar="NAME,...", help="Columns of the input table to write too.")
@click.option("--append", is_flag=True, help="Write all columns of the input table too.")
@click.option("--encoding", metavar="NAME", help="Encoding of a .csv; UTF-8 by default.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    metavar="COLUMN=TYPE",
    help="Type of a column: string, int64, float64, bool, datetime, ...; may be repeated.",
)
@click.option(
    "--na-values",
    multiple=True,
    metavar="[COLUMN=]TEXT",
    help="Text of a .csv that means a missing value, in text columns too; may be repeated.",
)
@click.option("--delimiter", "--sep", "delimiter", metavar="CHAR", help="Of a .csv; ',' or tab.")
@click.option("--decimal", metavar="CHAR", help="Before the decimals of a .csv; '.' by default.")
@click.option("--length-buckets", metavar="N,N,...", help="Lengths that lists are padded to.")
@click.option("--require-finite", is_flag=True, help="Treat rows with NaN or infinity as bad.")
@click.option("--on-error", type=click.Choice(["raise", "null"]), default="raise")
@click.option("--quarantine", metavar="PATH", help="Write bad rows there, with the reasons.")
@click.option("--profile", metavar="FILE", help="Record the run: .html, or .json for Perfetto.")
@picture_options
@common_options
@click.pass_obj
def command(
    options: Options,
    /,
    model_path: str,
    input_path: str,
    output_path: str,
    strategy: str,
    configuration: str | None,
    rows: str | None,
    outputs: str | None,
    tile: str | None,
    columns: str | None,
    feeds: tuple[str, ...],
    keep: str | None,
    append: bool,
    length_buckets: str | None,
    dtypes: tuple[str, ...],
    na_values: tuple[str, ...],
    watch_model: bool,
    **others: Any,
) -> None:
    """Run MODEL over INPUT and write OUTPUT, block by block, on a cluster.

    INPUT is .npy, .npz, .zarr, or a picture, a folder or a glob of pictures; OUTPUT .npy, .zarr or
    .parquet. What is found in pictures is written to .parquet, .csv or .jsonl, and masks to a
    folder, which has no ending, or to .npy or .zarr. A table is .parquet, .csv, .tsv, .jsonl (text
    also as .gz, .bz2, .xz, .zst), .arrow, .feather or .orc, a folder or a glob of these; it is
    written to .parquet, .csv or .jsonl. All may be URLs: s3://, gs://, hf://, https://. They are
    opened inside the tasks, so the workers must see them.
    """
    arguments: dict[str, Any] = {
        "strategy": named_strategy(strategy, configuration),
        "outputs": split_names(outputs) or None,
        "tile": None if tile is None else parse_tile(tile),
        "columns": parse_columns(columns, feeds),
        "append": append or tuple(split_names(keep)) or False,
        "length_buckets": parse_lengths(length_buckets),
        "dtype": parse_dtypes(dtypes),
        "na_values": parse_missing(na_values),
        "batch_size": others.pop("batch_size") or "auto",
        "image": take_picture_options(others),
    }
    if others["pre"] or others["post"]:
        find_in_current_folder()
    loading: dict[str, Any] = {"rows": parse_rows(rows), "untrusted": is_untrusted(options)}
    model = model_path if watch_model else load(model_path, **loading)
    if watch_model:
        arguments["watch_model"] = loading
    console = Console(stderr=True, highlight=False, quiet=options.as_json)
    recording = recorded(others.pop("profile"))
    with ConsoleProgress(console, is_verbose=options.debug) as progress, recording:
        found = predict_files(
            model, input_path, output_path, progress=progress, **arguments, **others
        )
    echo(json.dumps(as_dict(found)) if options.as_json else summary_of(found))


def parse_tile(text: str) -> Tile:
    """Return what `predict_files` takes as `tile`.

    Raises
    ------
    InputError
        Neither "auto", nor a number, nor several numbers.
    """
    if text == "auto":
        return "auto"
    sizes = text.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise InputError(
            f"{text!r} is no size of a tile", "give auto, 1024, or 512,1024", option="tile"
        )
    found = tuple(map(int, sizes))
    return found[0] if len(found) == 1 else found


def parse_columns(columns: str | None, feeds: Sequence[str]) -> Columns:
    """Return what `predict_files` takes as `columns`.

    Parameters
    ----------
    columns : str, optional
        Names, separated by commas.
    feeds : sequence of str
        ``INPUT=COLUMN`` or ``INPUT=COLUMN,COLUMN``.

    Raises
    ------
    InputError
        Both are given; a feed is not of that form.
    """
    if columns and feeds:
        raise InputError(
            "--columns and --feed were both given", "leave out one of them", option="columns"
        )
    if not feeds:
        return split_names(columns) or None
    named = {}
    for feed in feeds:
        name, equals, text = feed.partition("=")
        if not equals or not text:
            raise InputError(
                f"{feed!r} names no column for an input", "give it as INPUT=COLUMN", option="feeds"
            )
        parts = text.split(",")
        named[name] = parts if len(parts) > 1 else parts[0]
    return named


def parse_lengths(text: str | None) -> tuple[int, ...] | None:
    """Return what `predict_files` takes as `length_buckets`.

    Raises
    ------
    InputError
        Not numbers, separated by commas.
    """
    try:
        return tuple(int(part) for part in split_names(text)) or None
    except ValueError:
        raise InputError(
            f"{text!r} is no list of lengths", "give numbers: 16,32,64", option="length_buckets"
        ) from None


def as_dict(found: FilePrediction) -> dict[str, Any]:
    """Return the numbers of a job, for JSON; without those that it does not have."""
    numbers = {name: value for name, value in asdict(found).items() if value not in (None, ())}
    numbers |= {"seconds": round(found.seconds, 3), "output": found.files[0]}
    if found.was_complete:
        return numbers
    if found.rows is not None:
        numbers["rows_per_second"] = round(found.rows / found.seconds, 3)
    if found.pixels is not None:
        numbers["pixels"] = found.pixels
        numbers["pixels_per_second"] = round(found.pixels / found.seconds, 1)
    return numbers


def _amount_of(found: FilePrediction) -> str:
    if found.pixels is not None:
        return format_count(found.pixels, "pixel")
    return format_count(found.rows or 0, "row")


def summary_of(found: FilePrediction) -> str:
    """Return the numbers of a job as a line of text."""
    if found.was_complete:
        return f"{found.files[0]}: complete, {_amount_of(found)}; nothing to do"
    if found.pictures is not None:
        amount = (
            f"{format_count(found.pictures, 'picture')}, {format_count(found.rows or 0, 'row')}"
        )
        rate = f"{found.pictures / found.seconds:,.1f} pictures/s"
    elif found.pixels is not None:
        amount, rate = (
            format_count(found.pixels, "pixel"),
            f"{found.pixels / found.seconds:,.0f} pixels/s",
        )
    else:
        rows = found.rows or 0
        amount, rate = format_count(rows, "row"), f"{rows / found.seconds:,.1f} rows/s"
    bad = "" if found.bad_rows is None else f"; {found.bad_rows:,} bad rows: {found.files[1]}"
    if found.resumed_blocks:
        total = format_count(found.blocks, "block")
        bad += f"; {found.resumed_blocks:,} of {total} were complete before"
    if found.swaps:
        bad += f"; {format_count(len(found.swaps), 'new model')} on the way"
    return (
        f"{amount} in {found.seconds:.2f} s, {rate}, {format_count(found.workers, 'worker')}: "
        f"{found.files[0]}{bad}"
    )


class ConsoleProgress(JobProgress):
    """Progress of a job on a terminal, as a bar with its rate.

    Parameters
    ----------
    console : rich.console.Console
    is_verbose : bool
        Keep the log messages of Dask.
    """

    def __init__(self, console: Console, *, is_verbose: bool = False) -> None:
        self._console, self.is_verbose = console, is_verbose
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._began = time.monotonic()

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        # A bar that was not started prints an empty line when it is stopped.
        if self._task is not None:
            self._bar.stop()

    def connected(self, client: Client) -> None:
        """Print the address of the dashboard, or why there is none."""
        if importlib.util.find_spec("bokeh") is None:
            line = "needs pip install 'dask-onnx[dashboard]'"
        else:
            line = client.dashboard_link
        self._console.print(f"dashboard: {line}", markup=False)

    def warn(self, message: str) -> None:
        """Print a warning."""
        self._console.print(f"warning: {printable_lines(message)}", style="yellow", markup=False)

    def note(self, message: str) -> None:
        """Print what the job does where the caller has left it open."""
        self._console.print(printable_lines(message), markup=False, soft_wrap=True)

    def advanced(self, done: int, total: int, unit: str) -> None:
        """Move the bar, which appears with the first report."""
        if self._task is None:
            self._bar.start()
            self._began = time.monotonic()
            self._task = self._bar.add_task(unit, total=total, unit=unit)
        self._bar.update(self._task, completed=done)

    def produced(self, count: int, noun: str) -> None:
        """Show a rate before the bar, such as that of ``new_tokens``."""
        if self._task is not None:
            rate = count / max(time.monotonic() - self._began, 1e-3)
            words = noun.replace("_", " ")
            self._bar.update(self._task, description=f"{rate:,.0f} {words}/s, parts")

    def stopping(self) -> None:
        """Silence Dask: the processes of cancelled tasks log errors that hide the real one."""
        self._stop()
        if not self.is_verbose:
            for name in ("distributed.worker", "distributed.scheduler", "distributed.nanny"):
                logging.getLogger(name).setLevel(logging.CRITICAL)


class RateColumn(ProgressColumn):
    """Units that are completed in a second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text."""
        rate = f"{task.speed:,.1f}" if task.speed else "-"
        return Text(f"{rate} {task.fields['unit']}/s")
