"""Options of ``dask-onnx plan``: checks, and the plans that they describe."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.api.planner import Aim
from dask_onnx.cli.parameters import FROM_ANNOTATIONS, named_strategy, parse_shapes, split_names
from dask_onnx.cluster.placement import Placement
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.planning.recipe import Strategy, at_values, options_of
from dask_onnx.planning.schedule import Mode


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options by their names in `Model.plan`, as text where click does not parse them."""

    strategy: str | None
    """None if it was not given."""
    configuration: str | None
    n_stages: int | None
    n_workers: int | None
    min_seconds: float | None
    memory_limit: str | None
    stage_memory: str | None
    """Former name of `memory_limit`."""
    cut_at: tuple[str, ...]
    outputs: str | None
    shapes: tuple[str, ...]
    aim: Aim | None
    measure: str | None
    """Path of a file of rows."""
    batches: int | None
    schedule: Mode | None
    in_flight: int | None
    worker_groups: str | None
    allow_other_workers: bool
    rival: str | None
    """Strategy of the plan to compare with."""

    def check(self) -> None:
        """Check all that can be checked without the model.

        Raises
        ------
        InputError
            Options that exclude each other, or are not of their form.
        """
        if self.cut_at and self.strategy is not None:
            raise InputError(
                f"--strategy {self.strategy} and --cut-at were both given",
                "leave out one: --cut-at is a strategy of its own",
                option="cut_at",
            )
        if self.memory_limit is not None and self.stage_memory is not None:
            raise InputError(
                "--memory-limit and --stage-memory were both given",
                "they are the same: leave out --stage-memory",
                option="memory_limit",
            )
        if self.allow_other_workers and self.worker_groups is None:
            raise InputError(
                "--allow-other-workers was given without --worker-groups",
                "name the preferred worker of each stage, as --worker-groups 0,1",
                option="allow_other_workers",
            )
        if self.rival != FROM_ANNOTATIONS:
            named_strategy(self.name, self.configuration)
        parse_shapes(self.shapes)
        self._placement()
        if self.measure is not None and Path(self.measure).suffix not in (".npy", ".npz"):
            raise InputError(
                f"{self.measure!r} is neither .npy nor .npz",
                "save rows with np.save, or by input name with np.savez",
                option="measure",
            )

    @property
    def name(self) -> str:
        """Name of the strategy."""
        return self.strategy or ("at_values" if self.cut_at else "whole")

    def plan(self, model: Model, client: Any) -> Plan:
        """Return the plan of a model.

        Parameters
        ----------
        model : Model
        client : distributed.Client, optional

        Raises
        ------
        PlanError, InputError
            See `Model.plan`.
        """
        found = model.plan(
            self._strategy(model),
            shapes=parse_shapes(self.shapes),
            measure=None if self.measure is None else read_rows(self.measure, model),
            **self._numbers,
            **self._shared(client),
        )
        if not isinstance(found, Plan):
            raise PlanError(
                f"strategy {self.name!r} makes shards: {found.explain().splitlines()[0]}",
                "use it in Python: model.predict(x, plan=model.plan('auto', ...))",
                option="strategy",
            )
        if self.schedule is not None or self.in_flight is not None:
            found = found.with_schedule(self.schedule or "async", in_flight=self.in_flight)
        if (placement := self._placement()) is not None:
            found = found.with_placement(placement)
        return found

    def rival_plan(self, model: Model, plan: Plan, client: Any) -> Plan | None:
        """Return the plan to compare with, for the same work; None if there is none.

        It gets those of the options that its strategy takes.
        """
        if self.rival is None:
            return None
        taken = [] if self.rival == "auto" else options_of(self.rival)
        numbers = {name: value for name, value in self._numbers.items() if name in taken}
        configuration = self.configuration if self.rival == FROM_ANNOTATIONS else None
        found = model.plan(
            named_strategy(self.rival, configuration),
            shapes=plan.recipe.shapes,
            **numbers,
            **self._shared(client),
        )
        return found if isinstance(found, Plan) else None

    @property
    def _numbers(self) -> dict[str, Any]:
        """Options that only some strategies take."""
        return {
            "n_stages": self.n_stages,
            "n_workers": self.n_workers,
            "min_seconds": self.min_seconds,
            "memory_limit": self.memory_limit if self.stage_memory is None else self.stage_memory,
        }

    def _shared(self, client: Any) -> dict[str, Any]:
        outputs = split_names(self.outputs) or None
        return {"outputs": outputs, "aim": self.aim, "batches": self.batches, "client": client}

    def _strategy(self, model: Model) -> str | Strategy:
        if self.cut_at:
            return at_values([end for text in self.cut_at for end in read_ends(text, model.facts)])
        configuration = self.configuration if self.name == FROM_ANNOTATIONS else None
        return named_strategy(self.name, configuration)

    def _placement(self) -> Placement | None:
        if self.worker_groups is None:
            return None
        if not re.fullmatch(r"\d+(,\d+)*", self.worker_groups):
            raise InputError(
                f"{self.worker_groups!r} is no list of workers",
                "give a number for each stage: 0,1,0,1",
                option="worker_groups",
            )
        worker_groups = tuple(map(int, self.worker_groups.split(",")))
        return Placement(worker_groups, self.allow_other_workers)


def read_ends(text: str, facts: GraphFacts) -> list[tuple[str, ...]]:
    """Return ``a,b+c`` as the values that each stage ends with.

    A text, or a part of it between commas, that is the name of a value is not split.
    """
    if facts.is_known(text):
        return [(text,)]
    ends = split_names(text)
    return [(end,) if facts.is_known(end) else tuple(split_names(end, "+")) for end in ends]


def read_rows(path: str, model: Model) -> Any:
    """Return the rows in a file: an array, or several by input name.

    Raises
    ------
    InputError
        The file does not exist or is not numpy's; it has no rows, or one array without a name for
        a model of several inputs.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"": loaded}
        else:
            with loaded:
                arrays = dict(loaded)
    except FileNotFoundError:
        raise InputError(
            f"the file {path} does not exist", "check the path", option="measure"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read: {error}",
            "save it with np.save or np.savez",
            option="measure",
            reason=str(error),
        ) from error
    if not all(array.size for array in arrays.values()):
        raise InputError(
            f"{path} has no rows", "give a few that are like those to come", option="measure"
        )
    if set(arrays) not in ({""}, {"arr_0"}):
        return arrays
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise InputError(
            f"{path} has one array without a name; the model takes {len(model.inputs)} inputs: "
            f"{names}",
            "save an .npz by input name: np.savez(path, name=array, ...)",
            option="measure",
            numbers={"inputs": len(model.inputs)},
        )
    return next(iter(arrays.values()))
