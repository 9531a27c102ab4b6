"""dask_onnx behind ONNX's own backend interface, so that ONNX's test suite runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dask
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.core.errors import DaskOnnxError, InputError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.modelio.value_types import kind_of_value


class DaskOnnxBackendRep(BackendRep):
    """A model, planned and ready to run."""

    def __init__(self, plan: Plan, scheduler: str | Callable[..., Any] | None) -> None:
        self.plan = plan
        self._scheduler = scheduler

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run once, through Dask.

        Parameters
        ----------
        inputs : sequence, mapping by name, or the one input
            In the order of the graph's inputs.

        Returns
        -------
        tuple of arrays, or lists, dicts and None for sequences, maps and optionals
        """
        model = self.plan.model
        if not isinstance(inputs, Mapping):
            values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            if len(values) > len(model.inputs):
                raise InputError(
                    f"{len(values)} inputs were given; the model takes {len(model.inputs)}",
                    "give one value for each graph input",
                )
            inputs = {spec.name: value for spec, value in zip(model.inputs, values, strict=False)}
        names = [spec.name for spec in model.outputs]
        with dask.config.set(scheduler=self._scheduler):
            results = model.predict(inputs, outputs=names, plan=self.plan, batch_size=None)
        return tuple(results[name] for name in names)


class DaskOnnxBackend(Backend):
    """ONNX's backend interface; see ``onnx.backend.base.Backend``."""

    @classmethod
    def prepare(
        cls,
        model: Any,
        device: str = "CPU",
        *,
        strategy: str = "whole",
        n_stages: int | None = None,
        scheduler: str | Callable[..., Any] | None = None,
        session: SessionSpec | None = None,
        **load_options: Any,
    ) -> DaskOnnxBackendRep:
        """Load and plan a model.

        Parameters
        ----------
        model : whatever `dask_onnx.load` takes
        device : str
            "CPU"; others are a matter of `session`'s providers.
        strategy, n_stages
            As for `Model.plan`.
        scheduler : optional
            Dask's, by name or as a function; what Dask would use by default, which is the cluster
            of the current ``distributed.Client`` if there is one.
        session : SessionSpec, optional
        load_options
            For `dask_onnx.load`: custom_ops, replace and so on.

        Raises
        ------
        DaskOnnxError
            What `load` and `Model.plan` raise; InputError for a device that is not there.
        """
        if not cls.supports_device(device):
            raise InputError(
                f"there is no device {device!r}",
                "use 'CPU', or name a provider: session=SessionSpec(providers=...)",
            )
        loaded = model if isinstance(model, Model) else load(model, **load_options)
        plan = loaded.plan(strategy, n_stages=n_stages, session=session)
        return DaskOnnxBackendRep(plan, scheduler)

    @classmethod
    def run_model(
        cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Prepare and run a model once; options as for `prepare`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node; its types are those of `inputs`.

        Parameters
        ----------
        inputs : sequence of arrays, in the order of the node's inputs that are not left out
        outputs_info
            Is not needed, and ignored.
        opset_version : int
            Of ai.onnx; the newest by default. Other options as for `prepare`.
        """
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        names = list(dict.fromkeys(name for name in node.input if name))
        values = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        return cls.run_model(
            node,
            values,
            device,
            opsets={"": opset, **({node.domain: 1} if node.domain else {})},
            input_types={name: kind_of_value(value) for name, value in values.items()},
            **kwargs,
        )

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every node has a kernel here."""
        if not cls.supports_device(device):
            return False
        try:
            cls.prepare(model, device, **kwargs)
        except DaskOnnxError:
            return False
        return True

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether there is such a device: ``"CPU"``, also with a number as in ``"CPU:0"``."""
        try:
            return bool(Device(device).type == DeviceType.CPU)
        except (AttributeError, ValueError):
            return False


prepare = DaskOnnxBackend.prepare
run_model = DaskOnnxBackend.run_model
run_node = DaskOnnxBackend.run_node
supports_device = DaskOnnxBackend.supports_device
is_compatible = DaskOnnxBackend.is_compatible
