"""`Composite`: several models on the same inputs, with the verbs of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from dask.base import tokenize

from dask_onnx.api.model import Model
from dask_onnx.collections.prediction_progress import shown_progress
from dask_onnx.collections.prepared_request import PreparedRequest
from dask_onnx.collections.request_steps import synchronous_client
from dask_onnx.collections.run_options import BatchSize, Columns, OnError, Outputs
from dask_onnx.composites.composite_plan import CompositePlan
from dask_onnx.composites.composite_request import CompositeRequest
from dask_onnx.composites.each_stream import EachStream, Wait, stream_each
from dask_onnx.composites.member_outputs import WantedOutputs, wanted_outputs
from dask_onnx.composites.merge_choice import Merge, MergeChoice, choose_merge
from dask_onnx.composites.prefixed_models import prefixed
from dask_onnx.composites.separate_prediction import ApartRequest, predict_apart
from dask_onnx.composites.shared_inputs import SharedInputs, share_inputs
from dask_onnx.composites.swap_checks import check_alike, check_replacements
from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.io.kept_chunks import checkpoint_folder
from dask_onnx.streams.running_stream import Stream
from dask_onnx.streams.stream import stream


class Composite:
    """Several models on the same inputs. Made by `dask_onnx.compose`; immutable and picklable.

    Outputs are named by model and output: ``"face/scores"``. The planner chooses whether the models
    become one graph, in which equal nodes on equal inputs and weights run once (a backbone that
    models share), or are run apart; `merging` and `explain` say which, and why. Either way the
    results are those of the models.

    Parameters
    ----------
    models : mapping of str to Model
        Models by their names in the composite.
    rename : mapping of str to mapping of str to str
        For each model, other names of its inputs.
    merge : {"auto", True, False}
        As for `dask_onnx.compose`.
    name : str
        Name in dashboards, plans and messages.

    Examples
    --------
    >>> both = dx.compose(face=faces, text=texts)
    >>> both.predict(images)["face/scores"]
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        rename: Mapping[str, Mapping[str, str]],
        merge: Merge,
        name: str,
    ) -> None:
        self.name = name
        """Name that dashboards, plans and messages show."""
        self.models: Mapping[str, Model] = dict(models)
        """The models as they were given, by name."""
        self._rename, self._merge = rename, merge
        self._shared: SharedInputs = share_inputs(
            {key: model.inputs for key, model in models.items()}, rename
        )
        self._parts = {
            key: Model._of(prefixed(model._facts, key, self._shared.names[key]))
            for key, model in models.items()
        }

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of all models; those of equal names are one."""
        return self._shared.specs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of all models, named by model and output."""
        return tuple(spec for part in self._parts.values() for spec in part.outputs)

    @cached_property
    def merging(self) -> MergeChoice:
        """Choice between one graph and several, and its reason. Finding it out runs nothing."""
        parts = {name: part._facts for name, part in self._parts.items()}
        return choose_merge(self.name, parts, self.inputs, self._merge)

    @cached_property
    def _merged(self) -> Model | None:
        facts = self.merging.merged
        return None if facts is None else Model._of(facts)

    @property
    def runs(self) -> tuple[Model, ...]:
        """Models that run: the one graph, or each model with the names of the composite."""
        return tuple(self._parts.values()) if self._merged is None else (self._merged,)

    @property
    def token(self) -> str:
        """Content digest: composites of equal models and names have equal tokens."""
        own = [(name, tokenize(part)) for name, part in self._parts.items()]
        return str(tokenize(own, self._merge))

    def plan(self, strategy: Any = "whole", **options: Any) -> Any:
        """Cut the models into stages. Nothing runs, unless `measure` is given.

        Parameters
        ----------
        strategy, **options
            As for `Model.plan`. Where the models run apart, each is planned; ``shapes`` and
            ``measure`` are by input of the composite.

        Returns
        -------
        Plan or CompositePlan
            A plan of the one graph, or one of each model.

        Raises
        ------
        PlanError, InputError, StageError
            As for `Model.plan`.

        Examples
        --------
        >>> print(composite.plan("branches").explain())
        """
        wanted = wanted_outputs(options.pop("outputs", None), self._outputs_of_parts())
        if self._merged is not None:
            return self._merged.plan(strategy, outputs=list(wanted.names), **options)
        plans = {}
        for name, outputs in wanted.by_member.items():
            own = {spec.name for spec in self._parts[name].inputs}
            given: dict[str, Any] = {
                key: {k: v for k, v in each.items() if k in own}
                if isinstance(each, Mapping)
                else each
                for key, each in options.items()
            }
            plans[name] = self._parts[name].plan(strategy, outputs=list(outputs), **given)
        return CompositePlan(plans, self.merging.reason)

    def explain(self) -> str:
        """Return as text how the models run: as one graph or apart, why, and the plans.

        Examples
        --------
        >>> print(composite.explain())
        """
        if self._merged is None:
            return str(self.plan().explain())
        first = f"models {', '.join(self._parts)} run as one graph: {self.merging.reason}"
        return f"{first}\n\n{self.plan().explain()}"

    def predict(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        plan: Any = None,
        retries: int | None = None,
        columns: Columns = None,
        append: bool | Sequence[Any] = False,
        require_finite: bool = False,
        on_error: OnError = "raise",
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Any:
        """Run the models on a collection; the result is lazy if the collection is.

        Parameters
        ----------
        x
            As for `Model.predict`: an array or mapping of arrays, in memory or of Dask; a table; a
            bag; Delayed.
        outputs : str or sequence of str, optional
            Outputs such as ``"face/scores"``, or models, which stand for all of theirs.
        plan : Plan or CompositePlan, optional
            What `plan` returned.
        batch_size, retries, columns, append, require_finite, on_error
            As for `Model.predict`. Keys of `columns` are inputs of the composite.
        checkpoint : path or URL, optional
            As for `Model.predict`; models that run apart have a folder each inside it.
        progress : bool
            As for `Model.predict`; a row counts once for each model that runs apart.

        Returns
        -------
        collection, or dict of str to collection
            As for `Model.predict`, by names of the outputs. With ``on_error="null"`` a row that is
            bad for one model is missing for all of them, however they run.

        Raises
        ------
        InputError
            `x` or an option does not fit the models. Raised before any work.
        PlanError
            The plan is of other models.
        RunError, StageError, StoreError
            As for `Model.predict`.

        Examples
        --------
        >>> both.predict(images, outputs="face")
        """
        wanted = wanted_outputs(outputs, self._outputs_of_parts())
        rows = {"append": append, "require_finite": require_finite, "on_error": on_error}
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "retries": retries,
            "columns": columns,
            **rows,
        }
        if self._merged is not None:
            self._check_plan(plan)
            given = wanted.names[0] if wanted.is_bare else list(wanted.names)
            return self._merged.predict(
                x, outputs=given, plan=plan, checkpoint=checkpoint, progress=progress, **options
            )
        folder = None if checkpoint is None else checkpoint_folder(checkpoint)
        request = ApartRequest(self._parts, self.inputs, wanted, self._plans(plan, wanted), folder)
        with shown_progress(progress, x, " and ".join(self._parts)):
            return predict_apart(request, x, options)

    def __call__(self, x: Any, *, outputs: Outputs = None, batch_size: BatchSize = "auto") -> Any:
        """Run the models at once in this thread, for functions that run inside a Dask task.

        Parameters
        ----------
        x : ndarray, or mapping of str to ndarray
        outputs, batch_size
            As for `predict`.

        Raises
        ------
        InputError, StageError, StoreError
            As for `Model.__call__`.

        Examples
        --------
        >>> both(image)
        """
        wanted = wanted_outputs(outputs, self._outputs_of_parts())
        request = ApartRequest(self._parts, self.inputs, wanted, {})
        if self._merged is not None:
            found = self._merged(x, outputs=list(wanted.names), batch_size=batch_size)
        else:
            feeds = request.feeds_of(x)
            found = {}
            for name, own in wanted.by_member.items():
                found |= self._parts[name](feeds[name], outputs=list(own), batch_size=batch_size)
        return request.in_order(found)

    def prepare(
        self,
        client: Any = None,
        *,
        plan: Any = None,
        outputs: Outputs = None,
        retries: int | None = None,
    ) -> PreparedRequest | CompositeRequest:
        """Return a request that is checked once and started for each of many small inputs.

        Parameters
        ----------
        client, plan, outputs, retries
            As for `Model.prepare` and `predict`.

        Raises
        ------
        ClusterError, InputError, PlanError
            As for `Model.prepare`.

        Examples
        --------
        >>> request = both.prepare(client)
        """
        client = synchronous_client(client)
        wanted = wanted_outputs(outputs, self._outputs_of_parts())
        if self._merged is not None:
            self._check_plan(plan)
            given = wanted.names[0] if wanted.is_bare else list(wanted.names)
            return self._merged.prepare(client, plan=plan, outputs=given, retries=retries)
        plans = self._plans(plan, wanted)
        requests = {
            name: self._parts[name].prepare(
                client, plan=plans.get(name), outputs=list(own), retries=retries
            )
            for name, own in wanted.by_member.items()
        }
        return CompositeRequest(
            self.name, self.token, requests, self.inputs, wanted.names, is_bare=wanted.is_bare
        )

    def stream(
        self, source: Any, client: Any = None, *, wait: Wait = "all", **options: Any
    ) -> Stream | EachStream:
        """Run the models on a stream of frames.

        Parameters
        ----------
        source, client, **options
            As for `dask_onnx.stream`.
        wait : {"all", "each"}
            "all": the result of a frame is there when all models are done with it. "each": the
            models run apart, and a result comes from each as soon as it is there: a slow model does
            not hold up the others; see `EachStream`.

        Raises
        ------
        ClusterError, InputError, PlanError
            As for `dask_onnx.stream`.

        Examples
        --------
        >>> for index, found in both.stream(frames, client):
        ...     print(index, found["face/scores"])
        """
        if wait == "all":
            return stream(self, source, client, **options)
        if wait != "each":
            raise InputError(
                f"wait is {wait!r}",
                "choose 'all' or 'each'",
                option="wait",
                suggestions=[Suggestion("wait", "all"), Suggestion("wait", "each")],
            )
        wanted = wanted_outputs(options.pop("outputs", None), self._outputs_of_parts())
        parts = {name: self._parts[name] for name in wanted.by_member}
        return stream_each(
            parts, self.inputs, wanted.by_member, source, client, options, self._refit
        )

    def swap(self, **models: Model) -> Composite:
        """Return a composite with other models in place of some, of equal inputs and outputs.

        Running streams go over to it at a frame's border with ``stream.swap(composite)``.

        Parameters
        ----------
        **models : Model
            New models by the names of those that they replace.

        Raises
        ------
        InputError
            There is no model of a name, or a new one has other inputs or outputs.

        Examples
        --------
        >>> stream.swap(both.swap(face=retrained)).new_token
        """
        check_replacements(self.models, models)
        found = Composite({**self.models, **models}, self._rename, self._merge, self.name)
        check_alike(self, found, ", ".join(models))
        return found

    def _refit(self, models: Mapping[str, Model]) -> dict[str, Model]:
        """Return new models with the names of this composite; they are checked as by `swap`."""
        parts = self.swap(**models)._parts
        return {name: parts[name] for name in models}

    def _outputs_of_parts(self) -> dict[str, tuple[str, ...]]:
        return {n: tuple(s.name for s in part.outputs) for n, part in self._parts.items()}

    def _plans(self, plan: Any, wanted: WantedOutputs) -> Mapping[str, Any]:
        if plan is None:
            return {}
        if not isinstance(plan, CompositePlan) or not wanted.by_member.keys() <= plan.plans.keys():
            raise PlanError(
                f"plan is {plan!r}, and the models of {self.name!r} run apart",
                "pass what Composite.plan returns for these outputs",
                option="plan",
            )
        return plan.plans

    def _check_plan(self, plan: Any) -> None:
        if isinstance(plan, CompositePlan):
            raise PlanError(
                f"plan is for models that run apart; those of {self.name!r} run as one graph",
                "pass what Composite.plan returns, or compose with merge=False",
                option="plan",
                suggestions=[Suggestion("merge", False)],
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Composite, (self.models, self._rename, self._merge, self.name)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("composite", self.token)

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<dask_onnx.Composite {self.name!r}: ({inputs}) -> ({outputs})>"
