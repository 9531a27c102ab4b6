"""`verify_axes`: claims of the axis algebra, compared with runs on pieces of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.analysis.axes.axis_report import axis_groups
from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.api.model import Model
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.core.errors import DaskOnnxError, InputError, Suggestion
from dask_onnx.core.formatting import printable
from dask_onnx.core.specs import is_floating
from dask_onnx.runtime.input_values import as_input

_TOLERANCE = 1e-3
"""Largest difference that counts as rounding, as a share of the range of an output."""
_SAMPLE_ROWS = 4
"""Rows of a random sample."""
_INTEGER_BOUND = 2
"""Random integers are below this, and so within most vocabularies."""


@dataclass(frozen=True, slots=True)
class AxisCheck:
    """Claim about one axis of the inputs and one output, and the result of running pieces."""

    inputs: tuple[tuple[str, int], ...]
    """Name and axis of each input that was cut."""
    output: str
    """Name of the output."""
    claimed: str
    """Kind of dependence that the axis algebra claims, such as "independent"."""
    axis: int | None
    """Axis of the output on which the pieces were joined; None if they were not compared."""
    pieces: tuple[int, ...]
    """Sizes of the pieces, whose sum is the size of the axis."""
    difference: float
    """Largest difference from the whole, as a share of the range of the output. Infinite if the
    joined pieces have another shape or a piece cannot be run; NaN if they were not compared."""
    node: str
    """Name of the node that decides the claim."""

    @property
    def is_equal(self) -> bool:
        """True if the joined pieces equal the whole up to rounding."""
        return self.difference <= _TOLERANCE

    @property
    def is_wrong(self) -> bool:
        """True if the axis is claimed to be independent, and the pieces show that it is not."""
        return self.claimed == "independent" and not self.is_equal

    def __str__(self) -> str:
        where = ", ".join(f"{printable(name)}[{axis}]" for name, axis in self.inputs)
        output = printable(self.output)
        if self.axis is None:
            return f"{where} -> {output}: {self.claimed} at {self.node!r}, not run in pieces"
        verdict = "equal" if self.is_equal else f"differs by {self.difference:.3g} of the range"
        sizes = "+".join(map(str, self.pieces))
        mark = "  WRONG" if self.is_wrong else ""
        return f"{where} -> {output}: {self.claimed}; {sizes} {verdict}{mark}"


@dataclass(frozen=True)
class Verification:
    """Result of `verify_axes`. Prints as a list of checks."""

    checks: tuple[AxisCheck, ...]
    """A check for each axis, output and way of cutting."""

    @property
    def wrong(self) -> tuple[AxisCheck, ...]:
        """Checks in which an axis was wrongly claimed to be independent."""
        return tuple(check for check in self.checks if check.is_wrong)

    @property
    def is_right(self) -> bool:
        """True if no claim was wrong."""
        return not self.wrong

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks)) or "no axis to check"


def verify_axes(
    model: Model, sample: Any, *, pieces: Sequence[Sequence[int]] | None = None
) -> Verification:
    """Compare the claims of `Model.axes` with runs of the model on pieces of a sample.

    Every open axis of the inputs is cut, whatever is claimed about it. The joined outputs of the
    pieces are compared with those of the whole sample.

    Parameters
    ----------
    model : Model
        A model that draws no random numbers.
    sample : ndarray or mapping of str to ndarray
        Inputs, with two or more elements on the axes to check. Values matter: zeros hide
        dependences.
    pieces : sequence of sequences of int, optional
        Sizes of the pieces, for each way of cutting. By default one element and the rest, and two
        halves.

    Returns
    -------
    Verification
        A check for each axis, output and way of cutting. It prints as a list.

    Raises
    ------
    InputError
        The sample does not fit the model, `pieces` do not add up to the size of an axis, the model
        draws random numbers, or an input is no tensor.
    StageError
        The model cannot be run on the whole sample.

    Examples
    --------
    >>> checks = dx.verify_axes(model, np.random.rand(4, 3, 64, 64).astype("f4"))
    >>> checks.is_right
    True
    """
    random = model.analysis.batch.random
    if random:
        raise InputError(
            f"node {random[0]!r} draws random numbers, so that runs cannot be compared",
            "check a part without it: model.extract(outputs=[...])",
            node=random[0],
        )
    model.check(sample)
    specs = {spec.name: spec for spec in model.inputs}
    for spec in model.inputs:
        if spec.kind is not None:
            raise InputError(
                f"input {spec} is no tensor, and so has no axes",
                "check a part of the model whose inputs are tensors: model.extract(inputs=[...])",
                input=spec.name,
            )
    given = resolve_feeds(sample, model.inputs, list(specs))
    feeds = {name: as_input(value, specs[name]) for name, value in given.items()}
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
    model : Model
    shapes : mapping of str to tuple of int, optional
        Shapes of inputs by name; by default 4 rows, and 64 for other open dimensions.
    seed : int
        Seed of the random numbers.

    Returns
    -------
    dict of str to ndarray
        Standard normal numbers for floating-point inputs; 0 or 1 for integers and booleans.

    Raises
    ------
    InputError
        An input takes strings, sequences or maps, for which there are no random values.
    """
    bound, _ = assumed_shapes(model._facts.onnx, shapes)
    axes, _ = input_axes(model._facts.onnx)
    draw = np.random.default_rng(seed)
    sample = {}
    for spec in model.inputs:
        if spec.dtype is None or spec.dtype.kind not in "fiub":
            raise InputError(
                f"input {spec.name!r} is {spec}, for which there are no random values",
                "call verify_axes(model, sample) with inputs of your own",
                input=spec.name,
            )
        shape = tuple(
            _SAMPLE_ROWS if axis == axes[spec.name] and not shapes else size
            for axis, size in enumerate(bound[spec.name])
        )
        values = (
            draw.standard_normal(shape)
            if spec.dtype.kind == "f"
            else draw.integers(0, _INTEGER_BOUND, shape)
        )
        sample[spec.name] = np.asarray(values).astype(spec.dtype)
    return sample


def _candidates(
    model: Model, feeds: Mapping[str, np.ndarray], rows: dict[str, int]
) -> Iterator[dict[str, int]]:
    """Yield the axes to check, by input: the batch axes, and every open axis."""
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
            name, cut_axis = next(iter(seeds.items()))
            raise InputError(
                f"pieces {tuple(sizes)} of axis {cut_axis} of input {name!r} do not add up to its "
                f"size, {size}",
                f"give sizes of 1 or more whose sum is {size}",
                option="pieces",
                input=name,
                axis=cut_axis,
                numbers={"axis_size": size, "sum_of_pieces": sum(sizes)},
                suggestions=[Suggestion("pieces", _default_pieces(size))],
            )
        parts = _run_pieces(model, feeds, list(whole), seeds, sizes)
        for name, fact in claims.items():
            axis = fact.axis if fact.axis is not None else _axis_of_size(whole[name], size)
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


def _axis_of_size(array: np.ndarray, size: int) -> int | None:
    """Return the only axis of an array that has a given size; None if there is not exactly one."""
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
    """Return the results of all pieces; None if a piece cannot be run."""
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
    """Return the field `difference` of a check."""
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
    if not is_floating(whole.dtype) and whole.dtype.kind not in "iub":
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
