"""`tiling_drift`: measure the error of blended tiles on a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.api.model import Model
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError
from dask_onnx.tiles.image_input import as_input_image
from dask_onnx.tiles.predict import Tile, predict_tiled


@dataclass(frozen=True, slots=True)
class TilingDrift:
    """Difference of blended tiles from the untiled result, in the units of the output."""

    largest: float
    """Largest absolute difference of an element."""
    mean: float
    """Mean absolute difference."""
    scale: float
    """Largest absolute value of the untiled result, for comparison."""


def tiling_drift(
    model: Model,
    sample: Any,
    tile: Tile,
    overlap: int | Sequence[int] | None = None,
    *,
    axes: Sequence[int] | None = None,
    outputs: Outputs = None,
) -> dict[str, TilingDrift]:
    """Measure how far blended tiles are from the untiled result, on a sample that fits in memory.

    Parameters
    ----------
    model : Model
        A model with one input.
    sample : numpy.ndarray
        Image larger than one tile, of the input's dtype and rank; the batch axis may be left out.
        The model also runs on it untiled, in this process.
    tile : int, sequence of int, or "auto"
        Pixels of a tile along each tiled axis; "auto" for a model of fixed size.
    overlap : int or sequence of int, optional
        Pixels that neighbouring tiles share; 64 by default.
    axes : sequence of int, optional
        Axes along which tiles are cut, as for `predict_tiled`.
    outputs : str or sequence of str, optional
        Outputs to compare, as for ``model.predict``.

    Returns
    -------
    dict of str to TilingDrift
        Differences by output.

    Raises
    ------
    InputError
        The sample or an option does not fit the model.
    StageError, StoreError
        The model failed, or could not be read.

    See Also
    --------
    predict_tiled : Its ``exact=False`` blends overlapping tiles.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> model = dx.load("super_resolution.onnx")
    >>> drift = dx.tiling_drift(model, sample, tile=512, overlap=64)["output"]
    >>> drift.largest / drift.scale  # relative to the largest value
    """
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise InputError(
            f"the model has {len(model.inputs)} inputs ({names}); a sample is one array",
            "take the part of the model behind the others: model.extract(inputs=[...])",
            option="model",
            numbers={"inputs": len(model.inputs)},
        )
    spec = model.inputs[0]
    wanted = resolve_outputs(outputs, model.facts.outputs, model._facts.known_values)
    wanted_names = list(wanted.names)
    image = as_input_image(np.asarray(sample), spec)
    untiled = model(image.data, outputs=wanted_names, batch_size=None)
    tiled = predict_tiled(
        model,
        image.data,
        tile=tile,
        axes=axes,
        outputs=wanted_names,
        exact=False,
        overlap=overlap,
    )
    return {
        name: _drift(np.asarray(untiled[name]), np.asarray(tiled[name])) for name in wanted_names
    }


def _drift(untiled: np.ndarray, tiled: np.ndarray) -> TilingDrift:
    wide = untiled.astype(np.float64)
    difference = np.abs(wide - tiled.astype(np.float64))
    return TilingDrift(
        float(difference.max(initial=0)),
        float(difference.mean()) if difference.size else 0.0,
        float(np.abs(wide).max(initial=0)),
    )
