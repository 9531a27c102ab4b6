"""Prepared requests for frames that depend on each other, or that share a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.collections.kinds import shapes_of
from dask_onnx.collections.prepared_request import PreparedRequest
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.collections.request_steps import Step
from dask_onnx.core.errors import InputError, StageError, Suggestion
from dask_onnx.core.stage_tasks import Key


@dataclass(frozen=True, slots=True)
class LinkedStart:
    """Tasks of one frame, some of whose outputs the next one reads on the cluster."""

    step: Step
    """Step to a pair: the result, and a dict of the outputs that were to be fetched."""
    places: Mapping[str, tuple[Key, int | None]]
    """Output to the key of its task, and its position there."""
    futures: tuple[Any, ...]
    """Futures of these tasks."""


def start_linked(
    request: PreparedRequest,
    frame: Mapping[str, Any],
    *,
    fetches: bool,
    separates: bool,
    priority: int = 0,
) -> LinkedStart:
    """Submit the tasks of one frame, and leave the outputs `request.also` on the cluster.

    Parameters
    ----------
    request : PreparedRequest
    frame : mapping of str to array or TaskValue
        Inputs by name.
    fetches : bool
        True to gather the outputs of `request.also` too.
    separates : bool
        True to gather the result alone, which costs a task for each value of it; otherwise other
        outputs of the same stage come with it.
    priority : int
        Dask's priority.

    Raises
    ------
    InputError
        The frame does not fit the model.
    """
    variant, feeds = request.variant_of(frame)
    template, assembly = variant.template, variant.assembly
    number = request.next_number()
    keys = template.keys(request.request, number)
    tasks = template.tasks(keys, feeds)
    if separates:
        takes = template.takes(assembly.values, keys, request.request, number)
        tasks |= takes
        wanted = list(takes)
    else:
        wanted = [keys[stage] for stage in template.result_stages(assembly.values)]
    linked = [keys[stage] for stage in template.result_stages(request.also)]
    unique = list(dict.fromkeys([*wanted, *linked]))
    futures = request.submit_tasks(variant, tasks, unique, feeds, priority)
    by_key = dict(zip(unique, futures, strict=True))
    gathered = list(dict.fromkeys([*wanted, *(linked if fetches else ())]))

    def then(results: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        found = dict(zip(gathered, results, strict=True))
        state = {
            name: template.take(name, found[keys[template.outputs[name].stage]])
            for name in (request.also if fetches else ())
        }
        assemble = assembly.of_values if separates else assembly
        return assemble([found[key] for key in wanted]), state

    places = {name: template.outputs[name] for name in request.also}
    return LinkedStart(
        Step(tuple(by_key[key] for key in gathered), then, variant.supplies),
        {name: (keys[place.stage], place.position) for name, place in places.items()},
        tuple(by_key[key] for key in linked),
    )


def joinable_axes(request: PreparedRequest, frame: Any) -> BatchFacts:
    """Return the axes along which frames are joined to one input, and their results cut apart.

    Parameters
    ----------
    request : PreparedRequest
    frame : array, or mapping of str to array
        A frame.

    Raises
    ------
    InputError
        Rows are not proven to be independent, or a result has none.
    """
    facts = request.facts
    feeds = resolve_feeds(frame, facts.inputs, [spec.name for spec in request.inputs])
    shapes = shapes_of({name: np.asarray(v) for name, v in feeds.items()}, facts.inputs)
    batch = facts.batch_at(tuple(request.values), shapes)
    lacking = [name for name in request.values if batch.output_axes.get(name) is None]
    if batch.is_proven and not lacking:
        return batch
    reason = str(batch.blockers[0]) if batch.blockers else f"output {lacking[0]!r} has no rows"
    raise InputError(
        f"frames cannot share a run of {request.name!r}, since its rows are not proven to be "
        f"independent: {reason}",
        "leave micro_batch out",
        option="micro_batch",
        reason=reason,
        suggestions=[Suggestion("micro_batch", 1)],
    )


def start_together(request: PreparedRequest, frames: Sequence[Any], priority: int = 0) -> Step:
    """Submit one run for several frames of one signature, and return a step to their results.

    Parameters
    ----------
    request : PreparedRequest
    frames : sequence of array, or of mappings of str to array
        Frames that each fit the model.
    priority : int
        Dask's priority.

    Returns
    -------
    Step
        To the list of the results.

    Raises
    ------
    InputError
        The frames do not fit the model, or cannot share a run.
    """
    batch = joinable_axes(request, frames[0])
    each = [request.variant_of(frame) for frame in frames]
    fed = [feeds for _, feeds in each]
    joined = {
        name: _joined(name, [feeds[name] for feeds in fed], batch.input_axes.get(name))
        for name in fed[0]
    }
    rows = [_rows_of(feeds, batch.input_axes) for feeds in fed]
    variant, feeds = request.variant_of(joined)
    keys = variant.template.keys(request.request, request.next_number())
    tasks = variant.template.tasks(keys, feeds)
    assembly, outputs = variant.assembly, variant.template.outputs
    stages = variant.template.result_stages(assembly.values)
    futures = request.submit_tasks(variant, tasks, [keys[s] for s in stages], feeds, priority)

    def then(results: Sequence[Any]) -> list[Any]:
        by_stage = dict(zip(stages, results, strict=True))
        cut = [
            _cut(
                variant.template.take(value, by_stage[outputs[value].stage]),
                batch.output_axes[value],
                rows,
            )
            for value in assembly.values
        ]
        own = zip(*cut, strict=True)
        return [  # the masks of a frame are its own
            variant.assembly.of_values(values)
            for (variant, _), values in zip(each, own, strict=True)
        ]

    return Step(futures, then, variant.supplies)


def _joined(name: str, values: Sequence[Any], axis: int | None) -> Any:
    if axis is not None:
        return np.concatenate(values, axis=axis)
    if any(not np.array_equal(value, values[0]) for value in values[1:]):
        raise InputError(
            f"frames that share a run differ in input {name!r}, which has no rows",
            "leave micro_batch out",
            option="micro_batch",
            input=name,
            suggestions=[Suggestion("micro_batch", 1)],
        )
    return values[0]


def _rows_of(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> int:
    counts = (v.shape[axis] for n, v in feeds.items() if (axis := axes.get(n)) is not None)
    return int(next(counts))


def _cut(value: Any, axis: int | None, rows: Sequence[int]) -> list[Any]:
    """Return the parts of a joined result, one for each frame.

    Raises
    ------
    StageError
        It has another number of rows than the frames.
    """
    if axis is None or value.shape[axis] != sum(rows):
        raise StageError(
            f"a run of {sum(rows)} rows gave a result of shape {np.shape(value)}",
            "leave micro_batch out",
            option="micro_batch",
            numbers={"rows": sum(rows)},
        )
    return list(np.split(value, np.cumsum(rows)[:-1], axis=axis))
