"""Tensors and types: element types exist, and values are as many as sizes need."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import node, value
from modelio.damaged_models import model_of, refusal, tensor
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx


@pytest.mark.parametrize(
    "weight",
    [
        tensor(raw_data=bytes(3)),
        tensor(raw_data=bytes(32)),
        tensor(dims=(-4,), raw_data=bytes(16)),
        tensor(dims=(-2, -2), raw_data=bytes(16)),
        tensor(dims=(2**62,), raw_data=bytes(16)),
        tensor(dims=(2**62, 0), raw_data=b""),
        tensor(dims=(2**40, 2**40), raw_data=b""),
        tensor(dims=(1,) * 65, raw_data=bytes(4)),
        tensor(data_type=99, raw_data=bytes(16)),
        tensor(data_type=TensorProto.UNDEFINED, raw_data=bytes(16)),
        tensor(data_type=-1, raw_data=bytes(16)),
        tensor(float_data=[1, 2]),
        tensor(float_data=[1, 2, 3, 4, 5]),
        tensor(),
        tensor(data_type=TensorProto.STRING, string_data=[b"a"]),
        tensor(data_type=TensorProto.INT4, raw_data=bytes(4)),
        tensor(data_type=TensorProto.COMPLEX64, float_data=[1, 2, 3, 4]),
    ],
)
def test_tensors_have_the_values_that_their_sizes_need(weight):
    assert refusal(model_of([node("Add", "x w", "y")], [weight])).input == "w"
    # The value of a node is a tensor too.
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    assert refusal(model_of([constant, node("Add", "x w", "y")])).input == "w"


@pytest.mark.parametrize(
    "weight",
    [
        tensor(raw_data=bytes(16)),
        tensor(float_data=[1, 2, 3, 4]),
        tensor(raw_data=bytes(16), float_data=[1]),
        tensor(dims=(0,), raw_data=b""),
        tensor(dims=(0, 7)),
        tensor(data_type=TensorProto.INT4, raw_data=bytes(2)),
        tensor(data_type=TensorProto.INT4, int32_data=[1, 2]),
        tensor(dims=(3,), data_type=TensorProto.UINT4, raw_data=bytes(2)),
        tensor(data_type=TensorProto.FLOAT16, int32_data=[0, 1, 2, 3]),
        tensor(data_type=TensorProto.BOOL, raw_data=bytes(4)),
        tensor(data_type=TensorProto.UINT64, uint64_data=[1, 2, 3, 4]),
        tensor(data_type=TensorProto.STRING, string_data=[b"a"] * 4),
        tensor(dims=(2,), data_type=TensorProto.COMPLEX64, float_data=[1, 2, 3, 4]),
    ],
)
def test_every_way_to_store_a_tensor_is_accepted(weight):
    model = model_of([node("Relu", "x", "y"), node("Identity", "w", "z")], [weight])
    assert dx.load(model).facts.initializers == {"w"}


@pytest.mark.parametrize("elem_type", [-(2**31), -1, 77, 2**31 - 1])
@pytest.mark.parametrize("where", ["input", "output", "value_info"])
def test_declared_types_exist(elem_type, where):
    model = model_of([node("Relu", "x", "v"), node("Relu", "v", "y")])
    if where == "value_info":
        model.graph.value_info.append(value("v", [1]))
    getattr(model.graph, where)[0].type.tensor_type.elem_type = elem_type
    assert refusal(model).numbers == {"element_type": elem_type}


def test_an_input_has_no_more_axes_than_an_array():
    model = model_of([node("Relu", "x", "y")], inputs=[value("x", [1] * 70)])
    assert refusal(model).numbers == {"axes": 70, "most_axes": 64}


def sparse(values, indices, dims):
    made = onnx.SparseTensorProto(dims=dims)
    made.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "s"))
    made.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), ""))
    return made


@pytest.mark.parametrize(
    "weight",
    [
        sparse([1, 2], [1, 9], [4]),
        sparse([1, 2], [-1, 1], [4]),
        sparse([1, 2], [2, 1], [4]),
        sparse([1, 2], [1], [4]),
        sparse([1, 2], [1, 2], [2**62, 4]),
    ],
    ids=["outside", "negative", "unsorted", "fewer", "huge"],
)
def test_sparse_initializers_lie_inside_their_sizes(weight):
    model = model_of([node("Add", "x s", "y")])
    model.graph.sparse_initializer.append(weight)
    assert refusal(model).input == "s"


def test_a_sound_sparse_initializer_is_loaded():
    model = model_of([node("Add", "x s", "y")])
    model.graph.sparse_initializer.append(sparse([1, 2], [1, 3], [4]))
    assert dx.load(model).facts.initializers == {"s"}
