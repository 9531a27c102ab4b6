"""ONNX's own backend interface (``onnx.backend.base``), through which ONNX's test suite runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dask
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.collections.output_forms import output_forms
from dask_onnx.core.errors import DaskOnnxError, InputError, Suggestion
from dask_onnx.core.specs import SessionSpec
from dask_onnx.modelio.value_types import kind_of_value


class DaskOnnxBackendRep(BackendRep):
    """A plan that is ready to run, with the scheduler to run it on.

    Parameters
    ----------
    plan : Plan
    scheduler : str, function or None
        Scheduler of Dask, by name or as a function; None for the one that Dask would use.
    """

    def __init__(self, plan: Plan, scheduler: str | Callable[..., Any] | None) -> None:
        self.plan = plan
        """The plan."""
        self._scheduler = scheduler

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model once, through Dask.

        Parameters
        ----------
        inputs : sequence, mapping of str to array, or array
            Inputs in the order of the graph, by name, or the one input.
        kwargs
            Ignored; part of ONNX's interface.

        Returns
        -------
        tuple
            Outputs in the order of the graph: arrays; lists, dicts and None for sequences, maps and
            empty optionals.

        Raises
        ------
        InputError
            There are more inputs than the model has, or they do not fit it.
        """
        facts = self.plan.facts
        if not isinstance(inputs, Mapping):
            values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            if len(values) > len(facts.inputs):
                raise InputError(
                    f"{len(values)} inputs were given; the model takes {len(facts.inputs)}",
                    "give one value for each graph input",
                    option="inputs",
                    numbers={"given": len(values), "inputs": len(facts.inputs)},
                )
            inputs = {spec.name: value for spec, value in zip(facts.inputs, values, strict=False)}
        names = [spec.name for spec in facts.onnx.outputs]
        with dask.config.set(scheduler=self._scheduler):
            results = self.plan.predict(inputs, outputs=names, batch_size=None)
        forms = output_forms(facts, names)
        return tuple(forms[name].as_onnx(results[name]) for name in names)


class DaskOnnxBackend(Backend):
    """ONNX's backend interface; see ``onnx.backend.base.Backend``.

    Examples
    --------
    >>> from dask_onnx import backend
    >>> prepared = backend.prepare(model_proto, strategy="per_node")
    >>> (y,) = prepared.run([x])
    """

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
        model : Model, or a source that `dask_onnx.load` takes
        device : str
            "CPU". Other devices are chosen by the providers of `session`.
        strategy, n_stages
            As for `dask_onnx.Model.plan`.
        scheduler : str or function, optional
            Scheduler of Dask, by name or as a function. By default the one that Dask would use,
            such as the cluster of the current ``distributed.Client``.
        session : SessionSpec, optional
            Options of the ONNX Runtime sessions.
        load_options
            Options of `dask_onnx.load`, such as `custom_ops`.

        Raises
        ------
        InputError
            There is no such device.
        DaskOnnxError
            As for `dask_onnx.load` and `dask_onnx.Model.plan`.
        """
        if not cls.supports_device(device):
            raise InputError(
                f"there is no device {device!r}",
                "use 'CPU', or name a provider: session=SessionSpec(providers=...)",
                option="device",
                suggestions=[Suggestion("device", "CPU")],
            )
        loaded = model if isinstance(model, Model) else load(model, **load_options)
        plan = loaded.plan(strategy, n_stages=n_stages, session=session)
        return DaskOnnxBackendRep(plan, scheduler)

    @classmethod
    def run_model(
        cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Prepare a model and run it once; options as for `prepare`."""
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
        """Run one node at the types of its inputs.

        Parameters
        ----------
        node : NodeProto
        inputs : sequence or mapping of str to array
            Inputs in the order of the node, without omitted ones, or by name.
        device : str
            As for `prepare`.
        outputs_info
            Ignored; part of ONNX's interface.
        kwargs
            ``opset_version``: version of ai.onnx, by default the newest. Other options as for
            `prepare`.
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
        """Return True if the model can be prepared: every node has a kernel here."""
        if not cls.supports_device(device):
            return False
        try:
            cls.prepare(model, device, **kwargs)
        except DaskOnnxError:
            return False
        return True

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return True for the device "CPU", also with a number as in "CPU:0"."""
        try:
            return bool(Device(device).type == DeviceType.CPU)
        except (AttributeError, ValueError):
            return False


prepare = DaskOnnxBackend.prepare
run_model = DaskOnnxBackend.run_model
run_node = DaskOnnxBackend.run_node
supports_device = DaskOnnxBackend.supports_device
is_compatible = DaskOnnxBackend.is_compatible
