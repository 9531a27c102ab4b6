"""`DescribedModel`: an ONNX model as its graph describes it, and the parts cut out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from dask_onnx.analysis.axes.axis_report import AxisTable
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.report import Analysis, analyse, assumed_shapes
from dask_onnx.api.planner import Shapes
from dask_onnx.collections.extraction import extract
from dask_onnx.collections.freed_rows import free_rows
from dask_onnx.collections.output_forms import class_names
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import ModelError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.diagnostics.page import model_html
from dask_onnx.diagnostics.summary import Basis, basis_of
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.model_faults import model_faults
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.store.publishing import publish

_MAX_SHOWN_CHARACTERS = 60
"""Length up to which an error shows the caller's value itself rather than its type."""


class DescribedModel:
    """Facts of an ONNX model that follow from its graph; the base class of `Model`.

    Nothing here runs the model, except that `freed` compares its result with the original.
    """

    def __init__(
        self,
        onnx_model: OnnxModel,
        custom: CustomKernels | None = None,
        libraries: tuple[str, ...] = (),
    ) -> None:
        if not isinstance(onnx_model, OnnxModel):
            shown = _short_repr(onnx_model)
            raise ModelError(
                f"dx.Model does not load models; it was given {shown}",
                f"use dx.load({shown})",
                option="onnx_model",
            )
        self._facts = ModelFacts(onnx_model, custom, libraries)

    @classmethod
    def _of(cls, facts: ModelFacts) -> Self:
        model = cls.__new__(cls)
        model._facts = facts
        return model

    @property
    def _onnx(self) -> OnnxModel:
        return self._facts.onnx

    @property
    def name(self) -> str:
        """Name that dashboards, plans and messages show."""
        return self._onnx.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and symbolic shape of each input that must be fed, in the graph's order."""
        return self._onnx.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and symbolic shape of each graph output, in the graph's order."""
        return self._onnx.outputs

    @property
    def classes(self) -> Mapping[str, tuple[str | int, ...]]:
        """Classes of each output with scores of a classifier, in the order of its last axis.

        Converters end classifiers with ``ZipMap``, which makes a list of maps from class to score.
        Arrays and tables get the scores without it: an array of shape (rows, classes), or a column
        for each class. Rows of bags and Delayed get the maps. If an output is a sequence, its items
        are named by output and position: ``"probabilities_0"``.

        Examples
        --------
        >>> flowers.classes
        {'output_probability': ('setosa', 'versicolor', 'virginica')}
        """
        return class_names(self._facts)

    @property
    def defaults(self) -> tuple[TensorSpec, ...]:
        """Inputs with an initializer: they may be fed, and take the initializer otherwise."""
        return self._onnx.defaults

    @property
    def opsets(self) -> Mapping[str, int]:
        """Opset version that the model imports, by domain ("" is ai.onnx)."""
        return self._onnx.opsets

    @property
    def token(self) -> str:
        """Content digest: equal models have equal tokens, whatever they were loaded from."""
        return self._onnx.token

    @property
    def facts(self) -> GraphFacts:
        """Structure of the graph: nodes, and the producer and consumers of each value."""
        return self._facts.graph

    @cached_property
    def analysis(self) -> Analysis:
        """Branches, longest path, costs, batch axes and random nodes of the model.

        The numbers are for one row, and 64 for every other open dimension; `analyse` takes shapes.
        """
        return self.analyse()

    def analyse(self, shapes: Shapes | None = None) -> Analysis:
        """Return the same facts as `analysis`, at given input shapes. Runs nothing.

        Parameters
        ----------
        shapes : mapping of str to tuple of int, optional
            Shapes of inputs by name; one row and 64 for other open dimensions by default.

        Returns
        -------
        Analysis
            Predicted seconds in it follow from FLOPs and bytes, even if node times were measured.

        Raises
        ------
        InputError
            `shapes` do not fit the model.

        Examples
        --------
        >>> model.analyse({"x": (1, 3, 640, 640)}).flops
        """
        facts = self._facts
        bound = facts.bound_shapes(shapes)
        with model_faults("analysed", self.name):
            return analyse(self.facts, bound, facts.schemas, facts.costs, facts.custom_axes)

    def axes(self, shapes: Shapes | None = None, *, outputs: Outputs = None) -> AxisTable:
        """Return the dependence of the outputs on every axis of the inputs. Runs nothing.

        Parameters
        ----------
        shapes : mapping of str to tuple of int, optional
            Shapes of inputs by name for which the facts hold. By default one row, 64 for other open
            dimensions, and 7 for the axis in question where it would be 1.
        outputs : str or sequence of str, optional
            Graph outputs or intermediate values; the graph's outputs by default.

        Returns
        -------
        AxisTable
            For each input axis and value: the kind of dependence (independent, window, reduced,
            contracted, factored, gathered, scanned, paired, length, coupled, opaque), the axis of
            the value on which the positions lie, the range of positions that an element reads
            (offset, stride, extent), and the node that decides. It prints as a table.

        Raises
        ------
        InputError
            `shapes` do not fit the model, or there is no such output.

        Examples
        --------
        >>> print(model.axes())
        """
        facts = self._facts
        values = resolve_outputs(outputs, self.facts.outputs, facts.known_values).names
        return facts.axes(facts.bound_shapes(shapes), values)

    def basis(self, shapes: Shapes | None = None) -> Basis:
        """Return the source of the seconds that a plan for some input shapes predicts.

        Parameters
        ----------
        shapes : mapping of str to tuple of int, optional
            Shapes of inputs by name; one row and 64 for other open dimensions by default.

        Returns
        -------
        str
            "node_times": the nodes were measured at these shapes. "node_times_at_other_shapes":
            they were measured at others. "speed_of_other_models": FLOPs and bytes, at the speed
            that other models had on this host. "calibration": at the calibrated speed of this
            host's CPU. "defaults": at the speed of a common CPU.

        Raises
        ------
        InputError
            `shapes` do not fit the model.

        Examples
        --------
        >>> model.basis()
        'defaults'
        """
        facts = self._facts
        return basis_of(facts, assumed_shapes(facts.onnx, facts.bound_shapes(shapes))[0])

    def extract(
        self, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
    ) -> Self:
        """Return the part of the model between named values, as a model of its own.

        Parameters
        ----------
        inputs : sequence of str, optional
            Values that become inputs; by default the graph's inputs that the outputs need.
        outputs : sequence of str, optional
            Values that become outputs; the graph's outputs by default.

        Returns
        -------
        Model
            With the weights that the part needs, and a token of its own.

        Raises
        ------
        InputError
            There is no such value, its type is unknown, or the outputs need an input of the model
            that `inputs` leaves out.

        Examples
        --------
        >>> backbone = model.extract(outputs=["features"])
        >>> head = model.extract(inputs=["features"])
        """
        with model_faults("cut", self.name):
            return self._of(extract(self._facts, inputs, outputs))

    def freed(self, axes: Mapping[str, int] | None = None) -> Self:
        """Return the model with an open number of rows instead of the exported one.

        The number is rewritten wherever it occurs in the graph (Reshape targets, Expand, initial
        states, masks). The axis algebra must prove that rows of the result are independent, and the
        result is compared with the original by running both at the exported number of rows. Large
        weights are not copied.

        Parameters
        ----------
        axes : mapping of str to int, optional
            Axis of each input that carries rows, by name; the first axes by default.

        Returns
        -------
        Model
            With a token of its own. Its results equal those of the original up to rounding.

        Raises
        ------
        ModelError
            The number of rows cannot be opened. Field `node` has the node that is the reason.

        Examples
        --------
        >>> model = dx.load("exported_for_one_row.onnx").freed()
        >>> maps = model.predict(np.zeros((10, 3, 64, 64), "f4"))
        """
        with model_faults("opened along its rows", self.name):
            return self._of(free_rows(self._facts, axes))

    def __reduce__(self) -> tuple[Any, ...]:
        return self._of, (self._facts,)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return self._facts.__dask_tokenize__()

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"<dask_onnx.Model {self.name!r}: ({inputs}) -> ({outputs})>"

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows. Runs nothing."""
        return model_html(self._onnx)

    def _published(self) -> OnnxModel:
        """Write the weights to the host's store, for code that runs stages without `predict`."""
        publish(self._onnx)
        return self._onnx


def _short_repr(source: object) -> str:
    """Return an argument as an error shows it: its repr, or its type if that is long."""
    text = repr(source)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"a {type(source).__name__}"
