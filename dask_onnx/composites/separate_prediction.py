"""Predictions of several models that run apart, on every kind of collection."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.collections.arrow_tables import as_given, as_pandas, is_arrow_data
from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.composites.member_outputs import WantedOutputs
from dask_onnx.composites.separate_results import (
    JoinGood,
    PickInputs,
    join_rows,
    join_tables,
    keep_common,
    kept_columns,
    number_rows,
)
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.core.specs import TensorSpec


@dataclass(frozen=True, slots=True)
class ApartRequest:
    """Models that run apart, and what is wanted of them."""

    parts: Mapping[str, Model]
    """Models by name; their inputs and outputs are named as those of the composite."""
    inputs: tuple[TensorSpec, ...]
    """Inputs of the composite."""
    wanted: WantedOutputs
    """Outputs that the result has."""
    plans: Mapping[str, Any]
    """Plan of each model; empty for none."""
    checkpoint: str | None = None
    """Folder with a folder of finished chunks for each model; None to keep none."""

    def options_of(self, name: str) -> dict[str, Any]:
        """Return the options of `Model.predict` that differ between the models."""
        folder = self.checkpoint
        return {
            "outputs": list(self.wanted.by_member[name]),
            "plan": self.plans.get(name),
            # Any text may be the name of a model.
            "checkpoint": None if folder is None else f"{folder}/{quote(name, safe='')}-model",
        }

    def make_folder(self) -> None:
        """Make the folder of the checkpoint, in which each model makes its own."""
        if self.checkpoint is not None and not is_url(self.checkpoint):
            Path(self.checkpoint).mkdir(exist_ok=True)

    def feeds_of(self, x: Any) -> dict[str, dict[str, Any]]:
        """Return the inputs of each model that has wanted outputs.

        Raises
        ------
        InputError
            An input is missing, or unknown.
        """
        parts = {name: self.parts[name] for name in self.wanted.by_member}
        needed = {spec.name for part in parts.values() for spec in part.inputs}
        feeds = resolve_feeds(x, self.inputs, needed)
        return {n: {s.name: feeds[s.name] for s in part.inputs} for n, part in parts.items()}

    def in_order(self, found: Mapping[str, Any]) -> Any:
        """Return results as the caller wants them: in their order, or the only one bare."""
        names = self.wanted.names
        return found[names[0]] if self.wanted.is_bare else {name: found[name] for name in names}


def predict_apart(request: ApartRequest, x: Any, options: Mapping[str, Any]) -> Any:
    """Return the results of all models on a collection; see `Composite.predict`."""
    if is_arrow_data(x):
        return as_given(predict_apart(request, as_pandas(x), options), x)
    if is_table(x):
        return _of_table(request, x, dict(options))
    if is_bag(x):
        return _of_bag(request, x, dict(options))
    # A single input stays bare: arrays of xarray keep their dimensions only so.
    feeds = {
        name: next(iter(own.values())) if len(own) == 1 else own
        for name, own in request.feeds_of(x).items()
    }
    for name, given in feeds.items():  # of all models, before any of them runs
        request.parts[name].check(given)
    found: dict[str, Any] = {}
    for each in _run(request, feeds, options):
        found |= each
    return request.in_order(found)


def _run(
    request: ApartRequest, feeds: Mapping[str, Any], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the results of each model; on a cluster they run at the same time.

    Without one they run in turn, each on all cores of this machine.
    """

    def run(name: str) -> dict[str, Any]:
        found: dict[str, Any] = request.parts[name].predict(
            feeds[name], **request.options_of(name), **options
        )
        return found

    request.make_folder()
    names = list(feeds)
    if len(names) == 1 or current_client() is None:
        return [run(name) for name in names]
    with ThreadPoolExecutor(len(names), "dask-onnx-composite") as pool:
        running = [pool.submit(contextvars.copy_context().run, run, name) for name in names]
        return [each.result() for each in running]


def _of_bag(request: ApartRequest, x: Any, options: dict[str, Any]) -> Any:
    import dask.bag

    request.make_folder()
    known = frozenset(spec.name for spec in request.inputs)
    bags = []
    for name in request.wanted.by_member:
        part = request.parts[name]
        own = frozenset(spec.name for spec in part.inputs)
        rows = x if len(known) == 1 else x.map(PickInputs(own, known))
        bags.append(part.predict(rows, **request.options_of(name), **options))
    joined = bags[0] if len(bags) == 1 else dask.bag.map(join_rows, *bags)
    return joined.map(_Ordered(request.wanted))


@dataclass(frozen=True, slots=True)
class _Ordered:
    """Function on the rows of a bag: their outputs as the caller wants them."""

    wanted: WantedOutputs

    def __call__(self, row: Any) -> Any:
        if row is None:
            return None
        names = self.wanted.names
        return row[names[0]] if self.wanted.is_bare else {name: row[name] for name in names}


def _of_table(request: ApartRequest, x: Any, options: dict[str, Any]) -> Any:
    append, columns = options.pop("append"), options.pop("columns")
    chosen = _columns_of_parts(request, x, columns)
    given = {
        name: {**request.options_of(name), "columns": chosen[name], **options}
        for name in request.wanted.by_member
    }
    if options["on_error"] == "null" and len(given) > 1:
        if request.checkpoint is not None:
            raise InputError(
                "checkpoint keeps the chunks of each model, and with on_error='null' a row that is "
                "bad for one is missing for all, so that none is complete without the others",
                "leave on_error out; or predict with each model, and its own checkpoint",
                option="checkpoint",
                suggestions=[Suggestion("on_error", "raise"), Suggestion("checkpoint")],
            )
        return _with_missing_rows(request, x, append, given)
    request.make_folder()
    tables = [request.parts[name].predict(x, **own) for name, own in given.items()]
    kept = kept_columns(x, append, [column for table in tables for column in table.columns])
    if kept:
        tables = [x[kept], *tables]
    if len(tables) == 1:
        return tables[0]
    first, *others = tables
    if not hasattr(x, "dask"):
        return join_tables(*tables)
    meta = join_tables(*(table._meta for table in tables))
    return first.map_partitions(join_tables, *others, meta=meta, align_dataframes=False)


def _with_missing_rows(
    request: ApartRequest, x: Any, append: Any, given: Mapping[str, dict[str, Any]]
) -> Any:
    """Return the columns of all models, in which rows that are bad for any of them are missing.

    One graph of all models finds a row bad that is so for any of them; the results of models that
    run apart are the same. Rows of a model that are not proven independent of one another run
    again, without those that are bad for other models.
    """
    metas = []
    for name, own in given.items():
        asked = {key: own[key] for key in ("outputs", "columns", "on_error")}
        metas.append(request.parts[name].meta_for(x, **asked))
    kept = kept_columns(x, append, [column for meta in metas for column in meta.columns])
    numbered = _by_partition(number_rows, _used_columns(x, given))
    found = {name: _good_rows(request.parts[name], numbered, own) for name, own in given.items()}
    dependent = [n for n in given if not _has_independent_rows(request.parts[n], given[n])]
    if dependent:
        common = _by_partition(keep_common, numbered, *found.values())
        for name in dependent:
            found[name] = _good_rows(request.parts[name], common, given[name])
    join = JoinGood(tuple(metas), tuple(kept))
    return _by_partition(join, x, *found.values())


def _used_columns(x: Any, given: Mapping[str, dict[str, Any]]) -> Any:
    """Return the columns of a table that feed models; all of them where the models choose."""
    used: dict[Any, None] = {}
    for own in given.values():
        columns = own["columns"]
        if columns is None or x.ndim == 1:
            return x
        for each in columns.values() if isinstance(columns, Mapping) else [columns]:
            used |= dict.fromkeys([each] if isinstance(each, str) else each)
    # A column that does not exist is told where it is looked up.
    return x[list(used)] if all(name in x.columns for name in used) else x


def _good_rows(part: Model, table: Any, options: Mapping[str, Any]) -> Any:
    others = {n: value for n, value in options.items() if n not in ("on_error", "checkpoint")}
    return part.predict_checked(table, **others)[0]


def _has_independent_rows(part: Model, options: Mapping[str, Any]) -> bool:
    return bool(part._facts.batch_at(tuple(options["outputs"])).is_proven)


def _by_partition(function: Any, first: Any, *others: Any) -> Any:
    """Apply a function to tables: to those of pandas at once, to those of Dask by partition."""
    if not hasattr(first, "dask"):
        return function(first, *others)
    meta = function(*(table._meta for table in (first, *others)))
    found = first.map_partitions(function, *others, meta=meta, align_dataframes=False)
    return found.clear_divisions() if function is number_rows else found


def _columns_of_parts(request: ApartRequest, x: Any, columns: Any) -> dict[str, Any]:
    """Return the columns that feed the inputs of each model.

    Raises
    ------
    InputError
        There are several inputs, and columns are not given for each of them.
    """
    names = [spec.name for spec in request.inputs]
    parts = {n: [s.name for s in request.parts[n].inputs] for n in request.wanted.by_member}
    if len(names) == 1:
        return dict.fromkeys(parts, columns)
    if columns is not None and not isinstance(columns, Mapping):
        raise InputError(
            f"columns is {columns!r}; the models take {len(names)} inputs",
            f"name the columns of each: {', '.join(map(repr, names))}",
            option="columns",
            numbers={"inputs": len(names)},
        )
    given = dict(columns or {})
    labels = set() if x.ndim == 1 else set(x.columns)
    for name in given:
        if name not in names:
            raise InputError(
                f"columns names {name!r}, which is no input of the models",
                f"their inputs are {', '.join(map(repr, names))}",
                option="columns",
                input=str(name),
            )
    for name in {name for own in parts.values() for name in own}:
        if name not in given and name not in labels:
            raise InputError(
                f"the table has no column {name!r} for input {name!r}",
                "name its columns: columns={...}",
                option="columns",
                input=name,
                column=name,
            )
        given.setdefault(name, name)
    return {part: {name: given[name] for name in own} for part, own in parts.items()}
