"""The command ``dask-onnx store``: list, verify and clean up the models that a host keeps."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from dask.utils import parse_bytes, parse_timedelta
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dask_onnx.cli import Options, common_options
from dask_onnx.cli.printing import echo
from dask_onnx.core import config
from dask_onnx.core.errors import InputError, StoreError, Suggestion
from dask_onnx.core.formatting import format_bytes, format_count, printable
from dask_onnx.store.maintenance import (
    Pruned,
    StoredModel,
    folder_bytes,
    measurement_files,
    preview_prune,
    prune,
    stored_models,
    verify,
)
from dask_onnx.store.weight_store import Store

_yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")


@click.group("store")
def command() -> None:
    """List, verify and clean up the models that this host keeps.

    The store is the folder onnx.store.directory, by default in the user's cache folder. It holds
    graphs, weights by content, and measurements of this host.
    """


@command.command("list")
@common_options
@click.pass_obj
def list_command(options: Options) -> None:
    """List the models, least recently used first."""
    store = Store()
    found = stored_models(store)
    total, limit = folder_bytes(store.root), int(config.get("store.max-bytes"))
    if options.as_json:
        models = [_as_dict(model) for model in found]
        facts = {"folder": str(store.root), "bytes": total, "max_bytes": limit, "models": models}
        click.echo(json.dumps(facts))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "token", "blobs", "size", "last used", ""):
        table.add_column(heading, justify="right" if heading in ("blobs", "size") else "left")
    for model in found:
        named = len(model.keys) + model.missing_blobs
        blobs = f"{len(model.keys)} of {named}" if model.missing_blobs else str(named)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.last_used))
        state = "in use" if model.in_use else ""
        size = format_bytes(model.bytes)
        table.add_row(
            Text(printable(model.name or "-")), model.token[:12], blobs, size, when, state
        )
    console = Console(highlight=False)
    if found:
        console.print(table)
    console.print(
        f"{format_count(len(found), 'model')}, {format_bytes(total)} of at most "
        f"{format_bytes(limit)} in {store.root}",
        soft_wrap=True,
    )


def _as_dict(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "token": model.token,
        "blobs": len(model.keys),
        "blobs_lacking": model.missing_blobs,
        "bytes": model.bytes,
        "last_used": model.last_used,
        "in_use": model.in_use,
    }


@command.command("verify")
@common_options
@click.pass_context
def verify_command(context: click.Context) -> None:
    """Compare all files with their digests, and remove damaged ones, which are fetched again.

    The exit code is 1 if anything was damaged.
    """
    options: Options = context.obj
    store = Store()
    found = verify(store)
    damaged = [*found.damaged, *found.damaged_protos]
    if options.as_json:
        click.echo(json.dumps({"blobs": found.blobs, "bytes": found.bytes, "damaged": damaged}))
    else:
        for name in damaged:
            echo(f"damaged, removed: {name}")
        state = f"{len(damaged)} damaged" if damaged else "all match their digests"
        blobs = format_count(found.blobs, "blob")
        click.echo(f"{blobs}, {format_bytes(found.bytes)} read in {store.root}: {state}")
    if damaged:
        context.exit(1)


@command.command("forget")
@_yes_option
@common_options
@click.pass_obj
def forget_command(options: Options, yes: bool) -> None:
    """Remove the measurements of this host, such as those that were made while it was busy.

    These are the speed of the CPU, the times of nodes, and the best rows of a run. Later plans and
    runs measure them again. Models are kept.
    """
    store = Store()
    files = measurement_files(store)
    size = sum(path.stat().st_size for path in files)
    summary = f"{format_count(len(files), 'measurement')}, {format_bytes(size)}"
    _confirm(options, yes, bool(files), f"remove {summary} in {store.root}")
    count = store.remove_measurements() if files else 0
    if options.as_json:
        click.echo(json.dumps({"forgotten": count}))
    else:
        click.echo(f"{format_count(count, 'measurement')} removed from {store.root}")


@command.command("prune")
@click.option(
    "--max-bytes", metavar="SIZE", help="Size to keep, as 5GiB; onnx.store.max-bytes by default."
)
@click.option("--unused", metavar="TIME", help="Only models unused for this time, as 7d or 12h.")
@click.option("--all", "everything", is_flag=True, help="All models that are not in use.")
@_yes_option
@common_options
@click.pass_obj
def prune_command(
    options: Options, max_bytes: str | None, unused: str | None, everything: bool, yes: bool
) -> None:
    """Remove leftovers and models, least recently used first. Models in use are kept."""
    store = Store()
    limit = 0 if everything or unused else int(config.get("store.max-bytes"))
    if max_bytes is not None:
        limit = _parsed("max_bytes", max_bytes, "5GiB", parse_bytes)
    seconds = 0.0 if unused is None else float(_parsed("unused", unused, "7d", parse_timedelta))
    now = time.time()
    preview = preview_prune(store, limit, unused_seconds=seconds, now=now)
    for model in () if options.as_json else preview.models:
        echo(f"{model.name or '-'} {model.token[:12]}, {format_bytes(model.bytes)}")
    what = f"remove {_summary(preview)} in {store.root}"
    _confirm(options, yes, preview.freed_bytes > 0 or bool(preview.models), what)
    pruned = prune(store, limit, unused_seconds=seconds, now=now)
    if pruned is None:
        raise StoreError(
            f"other processes were reading or writing {store.root} all the time",
            "run it again when they are done",
        )
    if options.as_json:
        models = [model.token for model in pruned.models]
        numbers = {"freed_bytes": pruned.freed_bytes, "kept_bytes": pruned.kept_bytes}
        click.echo(json.dumps({"models": models, "in_use": pruned.kept_in_use, **numbers}))
        return
    in_use = f", {format_count(pruned.kept_in_use, 'model')} in use" if pruned.kept_in_use else ""
    click.echo(
        f"removed {_summary(pruned)}; kept {format_bytes(pruned.kept_bytes)} in {store.root}"
        f"{in_use}"
    )


def _summary(pruned: Pruned) -> str:
    return f"{format_count(len(pruned.models), 'model')}, {format_bytes(pruned.freed_bytes)}"


def _parsed(option: str, text: str, example: str, parse: Any) -> Any:
    """Return a size or a time that an option gives as text."""
    try:
        return parse(text)
    except (ValueError, KeyError) as error:
        kind = "size" if parse is parse_bytes else "time"
        raise InputError(
            f"{text!r} is not a {kind}",
            f"give it like {example}",
            option=option,
            reason=str(error),
            suggestions=(Suggestion(option, example),),
        ) from error


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _confirm(options: Options, yes: bool, has_work: bool, what: str) -> None:
    """Ask whether to remove files, unless ``--yes`` was given or there is nothing to remove.

    Raises
    ------
    click.Abort
        The answer is no.
    InputError
        A key of the configuration is misspelt, so that the folder may be the wrong one; or nobody
        can be asked: JSON was asked for, or the standard input is not a terminal.
    """
    if not has_work:
        return
    if unknown := config.unknown():
        raise InputError(
            f"it would {what}, and {unknown[0]}",
            "correct or remove the key first: it may be meant to name another folder",
            reason=unknown[0].name,
        )
    if yes:
        return
    if options.as_json or not _is_terminal():
        reason = "output is JSON" if options.as_json else "the standard input is not a terminal"
        raise InputError(
            f"it would {what}, and nobody can be asked to confirm that: {reason}",
            "add --yes to do it without a question",
        )
    click.confirm(f"{what[0].upper()}{what[1:]}?", abort=True)
