"""Options of the sessions of a model: those of the caller, completed from model and settings."""

from __future__ import annotations

import dataclasses

from dask_onnx.core import config
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.weights import graphs_of


def session_of(facts: ModelFacts, given: SessionSpec | None = None) -> SessionSpec:
    """Return the options of the sessions of a model.

    Parameters
    ----------
    facts : ModelFacts
        The model: its operator libraries are added, and its limit in time if it is not trusted.
    given : SessionSpec, optional
        What the caller asks for. A limit in time takes precedence over all others.

    Raises
    ------
    InputError
        A setting of the limit is not a time.
    """
    spec = given or SessionSpec()
    libraries = dict.fromkeys((*facts.libraries, *spec.custom_op_libraries))
    seconds = spec.max_run_seconds if spec.max_run_seconds is not None else _max_seconds(facts)
    return dataclasses.replace(spec, custom_op_libraries=tuple(libraries), max_run_seconds=seconds)


def _max_seconds(facts: ModelFacts) -> float | None:
    """Return the seconds that a run may take; None for any time."""
    limits = [config.seconds("session.max-run-seconds")]
    if facts.onnx.is_untrusted and _has_loops(facts):
        limits.append(config.seconds("untrusted.max-run-seconds"))
    return min((limit for limit in limits if limit is not None), default=None)


def _has_loops(facts: ModelFacts) -> bool:
    """Return whether a model has loops: the time of other operators follows from sizes."""

    def search() -> bool:
        graphs = graphs_of(facts.graph.proto)
        return any(standard_op_type(node) == "Loop" for graph in graphs for node in graph.node)

    found: bool = facts.kept.get_or_make("has loops", search)
    return found
