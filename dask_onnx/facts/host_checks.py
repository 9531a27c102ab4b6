"""Check, before work starts, that every worker has what the kernels of a plan need of their host.

Only models with such kernels cost anything: their workers are asked once for each model and set of
workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_onnx.cluster.links import workers_of
from dask_onnx.cluster.worker_answers import ask_workers
from dask_onnx.core.errors import PlanError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.weights import with_bodies
from dask_onnx.runtime.host_contracts import HostContract
from dask_onnx.runtime.host_needs import HostAnswer, HostNeed, ask_host, find_needs

_fit: BoundedCache[tuple[object, ...], bool] = BoundedCache("workers that fit models", 256)
"""Clients, models and workers that were asked, and had all that the model needs."""
_MAPS_TEXTS = "StringNormalizer"
"""Operator whose results depend on the host's locale."""
_MAX_NAMED = 3
"""Largest number of workers that an error names."""


def check_hosts(client: Any, facts: ModelFacts, session: SessionSpec) -> None:
    """Raise an error unless every worker can run the kernels that were chosen here, and alike.

    Parameters
    ----------
    client : Client or None
        Client of the cluster that will run the plan; None if there is none.
    facts : ModelFacts
        The model.
    session : SessionSpec
        Options of the sessions of the plan.

    Raises
    ------
    PlanError
        A worker lacks something, or gives other results; it names the workers and what they lack.
    """
    if client is None or client.asynchronous:
        return  # an asynchronous client cannot be asked here; each task checks its `HostContract`
    needs = host_needs(facts, session)
    if not needs:
        return
    workers = frozenset(workers_of(client))
    key = client.id, facts.times_token_of(session), session.providers, workers
    if not workers or _fit.get(key):
        return
    answers = ask_workers(client, ask_host, needs)
    here = ask_host(needs)
    for place, need in enumerate(needs):
        _check_need(need, here[place], {w: _answer_of(a, place) for w, a in answers.items()})
    _fit.put(key, True)


def host_needs(facts: ModelFacts, session: SessionSpec) -> tuple[HostNeed, ...]:
    """Return the needs of a model's kernels of their hosts; found once for each model."""

    def find() -> tuple[HostNeed, ...]:
        probe = facts.probe_of(session)
        return find_needs(probe, facts.kernels_of(session), session.provider_list)

    found: tuple[HostNeed, ...] = facts.kept.get_or_make(("host needs", session.providers), find)
    return found


def host_contract(facts: ModelFacts, session: SessionSpec) -> HostContract | None:
    """Return the facts that tasks must find on any host, early or late; None for most models.

    Only nodes whose results depend on the host are in it: what a host lacks is an error by itself.
    """

    def find() -> HostContract | None:
        nodes = (each for node in facts.graph.proto.graph.node for each in with_bodies(node))
        if not any(each.op_type == _MAPS_TEXTS for each in nodes):
            return None  # without a look at kernels, which costs time
        needs = tuple(need for need in host_needs(facts, session) if need.takes_texts)
        answers = ask_host(needs)
        if not needs or not all(answer.shows for answer in answers):
            return None  # without ONNX Runtime here, workers are compared with one another
        return HostContract(needs, tuple(answer.shows for answer in answers))

    found: HostContract | None = facts.kept.get_or_make(("host contract", session.providers), find)
    return found


def _answer_of(answers: Any, place: int) -> HostAnswer:
    """Return a worker's answer to one need; a worker that fails to answer lacks it."""
    if isinstance(answers, tuple):
        answer: HostAnswer = answers[place]
        return answer
    return HostAnswer(f"it does not answer: {type(answers).__name__}: {answers}")


def _check_need(need: HostNeed, here: HostAnswer, answers: Mapping[str, HostAnswer]) -> None:
    """Raise PlanError if a worker lacks what a node needs, or differs from this process."""
    lacking = {worker: answer.lacks for worker, answer in answers.items() if answer.lacks}
    # Without ONNX Runtime here, workers are compared with one another.
    expected = here.shows or next((a.shows for a in answers.values() if a.shows), ())
    for worker, answer in answers.items():
        if not answer.lacks and answer.shows != expected:
            lacking[worker] = "it maps letters as another locale does"
    if not lacking:
        return
    what = f"node {need.node!r} ({need.text})" if need.node else f"the option {need.text}"
    reasons = list(dict.fromkeys(lacking.values()))
    named = ", ".join(list(lacking)[:_MAX_NAMED]) + (" ..." if len(lacking) > _MAX_NAMED else "")
    raise PlanError(
        f"{len(lacking)} of {len(answers)} workers cannot run what {what} needs: {named}: "
        f"{'; '.join(reasons)}",
        need.remedy,
        node=need.node or None,
        option=None if need.node else need.text,
        reason="; ".join(reasons),
        numbers={"workers": len(answers), "unable_workers": len(lacking)},
    )
