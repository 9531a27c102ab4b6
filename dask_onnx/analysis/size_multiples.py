"""The number of pixels of which a model takes multiples, found without running it.

A network that halves an image five times and doubles it again meets itself at another size unless
height and width are multiples of 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import Schemas
from dask_onnx.analysis.size_conflicts import conflict_at
from dask_onnx.core.specs import Dim

MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Multiples that are tried in turn."""
_LEAST_CELLS = 3
"""Cells along an axis of the image that is tried: odd, so that no larger multiple fits."""
_LEAST_PIXELS = 96
"""Pixels along an axis of the image that is tried, at least: pooling windows must fit into it."""


def accepted_multiple(
    facts: GraphFacts,
    name: str,
    shape: Sequence[Dim],
    axes: Sequence[int],
    schemas: Schemas,
) -> int | None:
    """Return the smallest number of which a model takes multiples as the size of some axes.

    Parameters
    ----------
    facts : GraphFacts
    name : str
        The input.
    shape : sequence of int, str or None
        Its shape; other open axes than `axes` count as 1.
    axes : sequence of int
        Axes of height and width that are open.
    schemas : Schemas
        Operators of other domains.

    Returns
    -------
    int or None
        1 if no conflict is known; None if there is one at every one of `MULTIPLES`.
    """
    if not axes:
        return 1
    for multiple in MULTIPLES:
        side = multiple * max(_LEAST_CELLS, (_LEAST_PIXELS // multiple) | 1)
        sizes = tuple(
            side if axis in axes else dim if isinstance(dim, int) else 1
            for axis, dim in enumerate(shape)
        )
        if conflict_at(facts, {name: sizes}, schemas) is None:
            return multiple
    return None
