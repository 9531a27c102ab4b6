"""Claims about rows held against runs: the whole model beside its pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.analysis.axes.axis_report import axis_groups
from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.api.model import Model
from dask_onnx.collections.kinds import as_array
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.core.errors import DaskOnnxError, InputError

_TOLERANCE = 1e-3
"""Largest difference, as a share of the range of an output, that rounding may make."""


_SAMPLE_ROWS = 4
_SMALL = 2
"""Whole numbers are drawn below this, so that they are within most vocabularies."""


@dataclass(frozen=True, slots=True)
class AxisCheck:
    """What was claimed of one axis of the inputs and one output, and what runs show."""

    inputs: tuple[tuple[str, int], ...]
    """The axis: input and number, for all inputs that were cut along it."""
    output: str
    claimed: str
    """The kind that the algebra gives, such as "independent"."""
    axis: int | None
    """Axis of the output that the pieces were joined on; None if it was not run."""
    pieces: tuple[int, ...]
    """Sizes of the pieces, together the size of the axis."""
    difference: float
    """Largest difference of an element to the whole, as a share of the range of the output; inf
    where the joined pieces have another shape, or a piece cannot be run; NaN where nothing was."""
    node: str
    """Name of the node that decides the claim."""

    @property
    def is_equal(self) -> bool:
        """Whether pieces gave what the whole gives."""
        return self.difference <= _TOLERANCE

    @property
    def is_wrong(self) -> bool:
        """Whether the axis is claimed to be independent, and is not."""
        return self.claimed == "independent" and not self.is_equal

    def __str__(self) -> str:
        where = ", ".join(f"{name}[{axis}]" for name, axis in self.inputs)
        if self.axis is None:
            return f"{where} -> {self.output}: {self.claimed} at {self.node!r}, not run in pieces"
        verdict = "equal" if self.is_equal else f"differs by {self.difference:.3g} of the range"
        sizes = "+".join(map(str, self.pieces))
        mark = "  WRONG" if self.is_wrong else ""
        return f"{where} -> {self.output}: {self.claimed}; {sizes} {verdict}{mark}"


@dataclass(frozen=True)
class Verification:
    """All checks of one model."""

    checks: tuple[AxisCheck, ...]

    @property
    def wrong(self) -> tuple[AxisCheck, ...]:
        """Checks in which independence was claimed wrongly."""
        return tuple(check for check in self.checks if check.is_wrong)

    @property
    def is_right(self) -> bool:
        """Whether no claim was wrong."""
        return not self.wrong

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks)) or "no axis to check"


def verify_axes(
    model: Model, sample: Any, *, pieces: Sequence[Sequence[int]] | None = None
) -> Verification:
    """Run a model on pieces of a sample and on the whole, and compare with what `axes()` claims.

    Every open axis of the inputs is cut, whatever is claimed of it; random models differ from run
    to run and cannot be checked.

    Parameters
    ----------
    model : Model
    sample : ndarray, or a dict of them by input name
        Inputs as `model(sample)` takes them, with at least two elements on the axes to check. Their
        values matter: zeros hide dependences.
    pieces : sequence of sequences of int, optional
        How each axis is cut, as sizes; by default one element and the rest, and two halves.

    Returns
    -------
    Verification
        A check for each axis, output and way of cutting. It prints as a list.

    Raises
    ------
    InputError
        The sample does not fit the model, or the model draws random numbers.
    StageError
        The whole cannot be run.
    """
    random = model.analysis.batch.random
    if random:
        raise InputError(
            f"node {random[0]!r} draws random numbers, so that no run is like another",
            "check a model without it, such as model.extract(outputs=[...])",
        )
    model.check(sample)
    specs = {spec.name: spec for spec in model.inputs}
    given = resolve_feeds(sample, model.inputs, list(specs))
    feeds = {name: as_array(value, specs[name]) for name, value in given.items()}
    outputs = [spec.name for spec in model.outputs if spec.kind is None]
    whole = _run(model, feeds, outputs)
    checks: list[AxisCheck] = []
    shapes = {name: array.shape for name, array in feeds.items()}
    batch = model._facts.batch_at(tuple(outputs), shapes)
    rows = {name: axis for name, axis in batch.input_axes.items() if axis is not None}
    for seeds in _candidates(model, feeds, rows):
        is_proven = seeds == rows and not batch.blockers
        checks += _check_axis(model, feeds, whole, seeds, pieces, is_proven=is_proven)
    return Verification(tuple(checks))


def random_sample(
    model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return random inputs of a model, for `verify_axes`.

    Parameters
    ----------
    shapes : mapping of input name to shape, optional
        By default 4 rows, and 64 for other open dimensions.

    Raises
    ------
    InputError
        An input of strings, sequences or maps: what makes sense there is not known.
    """
    bound, _ = assumed_shapes(model._facts.onnx, shapes)
    axes, _ = input_axes(model._facts.onnx)
    draw = np.random.default_rng(seed)
    sample = {}
    for spec in model.inputs:
        if spec.dtype is None or spec.dtype.kind not in "fiub":
            raise InputError(
                f"input {spec.name!r} is {spec}, for which no values can be made up",
                "call verify_axes(model, sample) with inputs of your own",
            )
        shape = tuple(
            _SAMPLE_ROWS if axis == axes[spec.name] and not shapes else size
            for axis, size in enumerate(bound[spec.name])
        )
        values = (
            draw.standard_normal(shape)
            if spec.dtype.kind == "f"
            else draw.integers(0, 2 if spec.dtype.kind == "b" else _SMALL, shape)
        )
        sample[spec.name] = np.asarray(values).astype(spec.dtype)
    return sample


def _candidates(
    model: Model, feeds: Mapping[str, np.ndarray], rows: dict[str, int]
) -> Iterator[dict[str, int]]:
    """Input axes that share a size: what the library takes for rows, and every open axis."""
    seen: list[dict[str, int]] = []
    opened = [seeds for symbol, seeds in axis_groups(model.inputs) if not isinstance(symbol, int)]
    for seeds in (rows, *opened):
        sizes = {feeds[name].shape[axis] for name, axis in seeds.items() if name in feeds}
        if seeds and seeds not in seen and len(sizes) == 1 and max(sizes) > 1:
            seen.append(seeds)
            yield seeds


def _check_axis(
    model: Model,
    feeds: Mapping[str, np.ndarray],
    whole: Mapping[str, np.ndarray],
    seeds: Mapping[str, int],
    pieces: Sequence[Sequence[int]] | None,
    *,
    is_proven: bool,
) -> Iterator[AxisCheck]:
    shapes = {name: array.shape for name, array in feeds.items()}
    claims = model._facts.claims(dict(seeds), shapes, tuple(whole))
    size = next(feeds[name].shape[axis] for name, axis in seeds.items() if name in feeds)
    for sizes in pieces or _default_pieces(size):
        if sum(sizes) != size or min(sizes) < 1:
            raise InputError(
                f"pieces {tuple(sizes)} do not add up to {size}, the size of the axis",
                "give sizes of 1 or more that do",
            )
        parts = _run_pieces(model, feeds, list(whole), seeds, sizes)
        for name, fact in claims.items():
            axis = fact.axis if fact.axis is not None else _growing(whole[name], size)
            yield AxisCheck(
                inputs=tuple(seeds.items()),
                output=name,
                claimed="independent" if is_proven and fact.kind == "opaque" else fact.kind,
                axis=axis,
                pieces=tuple(sizes),
                difference=_difference(whole[name], parts, name, axis),
                node=fact.node,
            )


def _default_pieces(size: int) -> list[tuple[int, ...]]:
    halves = (size // 2, size - size // 2)
    return list(dict.fromkeys([(1, size - 1), halves]))


def _growing(array: np.ndarray, size: int) -> int | None:
    """The only axis of an output that is as long as the input's."""
    axes = [axis for axis, length in enumerate(array.shape) if length == size]
    return axes[0] if len(axes) == 1 else None


def _run(model: Model, feeds: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    results = model(dict(feeds), outputs=list(outputs), batch_size=None)
    return {name: np.asarray(results[name]) for name in outputs}


def _run_pieces(
    model: Model,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    seeds: Mapping[str, int],
    sizes: Sequence[int],
) -> list[dict[str, np.ndarray]] | None:
    """The results of all pieces; None if one cannot be run, which is a difference too."""
    results, start = [], 0
    for size in sizes:
        piece = {
            name: np.take(array, range(start, start + size), axis=seeds[name])
            if name in seeds
            else array
            for name, array in feeds.items()
        }
        try:
            results.append(_run(model, piece, outputs))
        except DaskOnnxError:
            return None
        start += size
    return results


def _difference(
    whole: np.ndarray,
    parts: Sequence[Mapping[str, np.ndarray]] | None,
    name: str,
    axis: int | None,
) -> float:
    if axis is None:
        return float("nan")
    if parts is None:
        return float("inf")
    arrays = [part[name] for part in parts]
    if any(array.ndim != whole.ndim for array in arrays):
        return float("inf")
    others = {array.shape[:axis] + array.shape[axis + 1 :] for array in (whole, *arrays)}
    joined = np.concatenate(arrays, axis=axis) if len(others) == 1 else None
    if joined is None or joined.shape != whole.shape:
        return float("inf")
    if whole.dtype.kind not in "fiub":
        return 0.0 if bool(np.array_equal(joined, whole)) else float("inf")
    wide, narrow = joined.astype(np.float64), whole.astype(np.float64)
    is_same = (wide == narrow) | (np.isnan(wide) & np.isnan(narrow))
    if is_same.all():
        return 0.0
    finite = narrow[np.isfinite(narrow)]
    scale = float(np.ptp(finite)) if finite.size else 0.0
    scale = scale or float(np.abs(finite).max(initial=0.0)) or 1.0
    gap = np.abs(wide - narrow)[~is_same]
    return float(np.nan_to_num(gap, nan=np.inf).max() / scale)
