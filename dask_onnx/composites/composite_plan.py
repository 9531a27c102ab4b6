"""Plans of several models that run apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CompositePlan:
    """A plan for each model of a composite whose models run apart. Made by `Composite.plan`."""

    plans: Mapping[str, Any]
    """Plan of each model by its name in the composite."""
    reason: str
    """Reason for which the models run apart."""

    def explain(self) -> str:
        """Return the plans as text. Runs nothing.

        Examples
        --------
        >>> print(composite.plan().explain())
        """
        parts = [f"models run apart: {self.reason}"]
        parts += [f"model {name}\n{plan.explain()}" for name, plan in self.plans.items()]
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return f"<dask_onnx.CompositePlan of {', '.join(self.plans)}>"
