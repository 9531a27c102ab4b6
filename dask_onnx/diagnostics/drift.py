"""Effect of lossy compression of values between stages on a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.runtime.codec import Lossy


@dataclass(frozen=True, eq=False)
class Drift:
    """Differences of a model's outputs, measured on a sample of inputs."""

    way: Lossy
    """Type that values between stages are packed as."""
    budget: float
    """Largest difference that was allowed, relative to the largest absolute value of an output."""
    absolute: Mapping[str, float]
    """Output to the largest absolute difference of any element."""
    relative: Mapping[str, float]
    """The same, divided by the largest absolute value of that output."""

    def describe(self) -> str:
        """Return the differences as a sentence."""
        moved = ", ".join(
            f"{name} by {self.absolute[name]:.3g} ({share:.3%} of its largest value)"
            for name, share in self.relative.items()
        )
        return f"{self.way} between stages moved {moved}; the budget is {self.budget:.3%}"


def measure_drift(
    way: Lossy, budget: float, exact: Mapping[str, Any], packed: Mapping[str, Any]
) -> Drift:
    """Compare outputs with and without loss.

    Parameters
    ----------
    way : {"float16", "int8"}
    budget : float
        Largest relative difference that is allowed; it is only recorded.
    exact, packed : mapping of output name to array
        Outputs of the same inputs. Outputs that are not numeric, or differ in shape, count as a
        difference of 1 unless they are equal.
    """
    absolute, relative = {}, {}
    for name, values in exact.items():
        values, moved = np.asarray(values), np.asarray(packed[name])
        if values.dtype.kind not in "fiu" or values.shape != moved.shape:
            differs = float(values.shape != moved.shape or bool(np.any(values != moved)))
            absolute[name] = relative[name] = differs
            continue
        difference = np.abs(values.astype(np.float64) - moved.astype(np.float64))
        absolute[name] = float(np.nanmax(difference, initial=0))
        largest = float(np.nanmax(np.abs(values.astype(np.float64)), initial=0))
        relative[name] = absolute[name] / largest if largest else float(absolute[name] > 0)
    return Drift(way, budget, absolute, relative)
