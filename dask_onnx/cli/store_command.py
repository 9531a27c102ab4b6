"""``dask-onnx store``: what this host keeps of models, and putting it in order."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from dask.utils import parse_bytes, parse_timedelta
from rich.console import Console
from rich.table import Table

from dask_onnx.cli import Options, common_options
from dask_onnx.core import config
from dask_onnx.core.errors import InputError, StoreError
from dask_onnx.core.formatting import format_bytes
from dask_onnx.store.maintenance import Entry, entries, folder_bytes, prune, verify
from dask_onnx.store.weight_store import Store


@click.group("store")
def command() -> None:
    """What this host keeps of models: weightless protos, and weights by content.

    The folder is onnx.store.directory, the user's cache folder by default.
    """


@command.command("list")
@common_options
@click.pass_obj
def list_command(options: Options) -> None:
    """The models, least recently used first."""
    store = Store()
    found = entries(store)
    total, limit = folder_bytes(store.root), int(config.get("store.max-bytes"))
    if options.as_json:
        models = [_as_dict(entry) for entry in found]
        click.echo(
            json.dumps(
                {"folder": str(store.root), "bytes": total, "max_bytes": limit, "models": models}
            )
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "token", "blobs", "size", "last used", ""):
        table.add_column(heading, justify="right" if heading in ("blobs", "size") else "left")
    for entry in found:
        named = len(entry.keys) + entry.lacking
        blobs = f"{len(entry.keys)} of {named}" if entry.lacking else str(named)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        state = "in use" if entry.in_use else ""
        size = format_bytes(entry.bytes)
        table.add_row(entry.name or "-", entry.token[:12], blobs, size, when, state)
    console = Console(highlight=False)
    if found:
        console.print(table)
    console.print(
        f"{len(found)} models, {format_bytes(total)} of at most {format_bytes(limit)} "
        f"in {store.root}",
        soft_wrap=True,
    )


def _as_dict(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "token": entry.token,
        "blobs": len(entry.keys),
        "blobs_lacking": entry.lacking,
        "bytes": entry.bytes,
        "last_used": entry.last_used,
        "in_use": entry.in_use,
    }


@command.command("verify")
@common_options
@click.pass_context
def verify_command(context: click.Context) -> None:
    """Read everything and compare it with its digest; what is damaged goes, and is fetched anew.

    Exit code 1 if anything was damaged.
    """
    options: Options = context.obj
    store = Store()
    found = verify(store)
    if options.as_json:
        damaged = [*found.damaged, *found.damaged_protos]
        click.echo(json.dumps({"blobs": found.blobs, "bytes": found.bytes, "damaged": damaged}))
    else:
        for name in (*found.damaged, *found.damaged_protos):
            click.echo(f"damaged, removed: {name}")
        bad = len(found.damaged) + len(found.damaged_protos)
        click.echo(
            f"{found.blobs} blobs, {format_bytes(found.bytes)} read in {store.root}: "
            + (f"{bad} damaged" if bad else "all as their digests say")
        )
    if found.damaged or found.damaged_protos:
        context.exit(1)


@command.command("forget")
@common_options
@click.pass_obj
def forget_command(options: Options) -> None:
    """Forget what was measured here, as on a busy machine: the CPU's speed, seconds of nodes, best
    rows of a run. What plans and runs from then on need is measured anew; models stay.
    """
    store = Store()
    count = store.forget_measured()
    if options.as_json:
        click.echo(json.dumps({"forgotten": count}))
    else:
        click.echo(f"{count} measurements forgotten in {store.root}")


@command.command("prune")
@click.option("--max-bytes", help="What may stay, such as 5GiB; onnx.store.max-bytes if left.")
@click.option("--unused", help="Only models that were not used for so long, such as 7d or 12h.")
@click.option("--all", "everything", is_flag=True, help="Every model that nobody uses now.")
@common_options
@click.pass_obj
def prune_command(
    options: Options, max_bytes: str | None, unused: str | None, everything: bool
) -> None:
    """Remove leftovers, and models, least recently used first. One in use is never taken."""
    store = Store()
    limit = 0 if everything or unused else int(config.get("store.max-bytes"))
    try:
        limit = limit if max_bytes is None else parse_bytes(max_bytes)
        unused_seconds = float(parse_timedelta(unused)) if unused else 0.0
    except (ValueError, KeyError) as error:
        raise InputError(
            f"not a size or a time: {error}", "give --max-bytes like 5GiB, --unused like 7d or 12h"
        ) from error
    pruned = prune(store, limit, unused_seconds=unused_seconds, now=time.time())
    if pruned is None:
        raise StoreError(
            f"other processes were reading or writing {store.root} all the time",
            "run it again when they are done",
        )
    if options.as_json:
        models = [entry.token for entry in pruned.models]
        numbers = {"freed_bytes": pruned.freed_bytes, "kept_bytes": pruned.kept_bytes}
        click.echo(json.dumps({"models": models, "in_use": pruned.kept_in_use, **numbers}))
        return
    for entry in pruned.models:
        click.echo(f"removed {entry.name or '-'} {entry.token[:12]}, {format_bytes(entry.bytes)}")
    in_use = f"; {pruned.kept_in_use} in use were kept" if pruned.kept_in_use else ""
    click.echo(
        f"{format_bytes(pruned.freed_bytes)} freed, {format_bytes(pruned.kept_bytes)} kept "
        f"in {store.root}{in_use}"
    )
