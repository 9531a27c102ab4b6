"""Graphs whose rows depend on their place: in a seed's order, behind bounds, in narrow integers."""

from __future__ import annotations

import numpy as np
from row_traps import SAME, cut_trap, real, whole, whole_trap

TOKENS = "(float[N,T,8] x"
"""Beginning of the interface of graphs of tokens."""
_LN_SCALE = "s = Constant<value=float[3,1]{1.0,2.0,3.0}>()"

PLACES = (
    # Softmax of quantised numbers: its own attribute says whether it flattens the axes behind.
    whole_trap(
        "quantised softmax that flattens all axes",
        "(uint8[N,3] x) => (uint8[N,3] y)",
        "s = Constant<value_float=0.01>()  zp = Constant<value=uint8{3}>()  "
        "y = com.microsoft.QLinearSoftmax<axis=0,opset=12>(x, s, zp, s, zp)",
        x=whole(255, "n", 3, dtype="u1"),
    ),
    cut_trap(
        "quantised softmax of one axis",
        "(uint8[N,3] x) => (uint8[N,3] y)",
        "s = Constant<value_float=0.01>()  zp = Constant<value=uint8{3}>()  "
        "y = com.microsoft.QLinearSoftmax<axis=1,opset=13>(x, s, zp, s, zp)",
        x=whole(255, "n", 3, dtype="u1"),
    ),
    # Bounds and integers that hold all rows of a small batch, and not of a large one.
    whole_trap(
        "the last rows, of which few have all",
        SAME,
        "a = Constant<value_ints=[-100000]>()  e = Constant<value_ints=[9223372036854775807]>()  "
        "y = Slice(x, a, e, zero)",
    ),
    cut_trap(
        "from the first row on, counted from the end",
        SAME,
        "a = Constant<value_ints=[-9223372036854775807]>()  "
        "e = Constant<value_ints=[9223372036854775807]>()  y = Slice(x, a, e, zero)",
    ),
    *(
        whole_trap(
            f"places in {name}",
            SAME,
            f"p = Range(z, count, o)  q = Cast<to={number}>(p)  r = Cast<to=7>(q)  "
            "y = Gather(x, r)",
        )
        for name, number in (("uint8", 2), ("int16", 5), ("bool", 9), ("float16", 10))
    ),
    cut_trap(
        "places in int32",
        SAME,
        "p = Range(z, count, o)  q = Cast<to=6>(p)  y = Gather(x, q)",
    ),
    # Parameters with an element for each place along an axis beside the normalised ones.
    cut_trap(
        "scale for each token",
        f"{TOKENS}) => (float[N,T,8] y)",
        f"{_LN_SCALE}  y = LayerNormalization<axis=-1>(x, s)",
        x=real("n", 3, 8),
    ),
    cut_trap(
        "scale for each row, computed from it",
        f"{TOKENS}) => (float[N,T,8] y)",
        "m = ReduceMax<keepdims=1>(x, one)  y = LayerNormalization<axis=-1>(x, m)",
        x=real("n", 3, 8),
    ),
    # The mask of one axis: a length for each row, or first all ends and then all starts.
    cut_trap(
        "lengths of rows as a mask",
        f"{TOKENS}, int32[N] m) => (float[N,T,8] y)",
        "h = Constant<value_floats=[0.1]>()  f = Constant<value_ints=[8,24]>()  w = Expand(h, f)  "
        "g = Constant<value_ints=[24]>()  b = Expand(h, g)  "
        "y = com.microsoft.Attention<num_heads=2>(x, w, b, m)",
        x=real("n", 3, 8),
        m=lambda rows, rng: rng.integers(1, 4, rows).astype("i4"),
    ),
    whole_trap(
        "ends and starts of rows as a mask",
        f"{TOKENS}, int32[M] m) => (float[N,T,8] y)",
        "h = Constant<value_floats=[0.1]>()  f = Constant<value_ints=[8,24]>()  w = Expand(h, f)  "
        "g = Constant<value_ints=[24]>()  b = Expand(h, g)  "
        "y = com.microsoft.Attention<num_heads=2>(x, w, b, m)",
        x=real("n", 3, 8),
        m=lambda rows, rng: np.repeat([3, 0], rows).astype("i4"),
    ),
    whole_trap(
        "lengths in another order than the rows",
        "(float[N,4] x, int64[N] l) => (float[M,4] y, float[M,4] w)",
        "k = Constant<value_ints=[1,2]>()  m = Constant<value_ints=[-1]>()  "
        "c = Concat<axis=0>(x, x)  u = Unsqueeze(l, one)  e = Expand(u, k)  f = Reshape(e, m)  "
        "g = ReverseSequence<batch_axis=0,time_axis=1>(c, f)  "
        "y, w = Split<axis=0,num_outputs=2>(g)",
        x=real("n", 4),
        l=lambda rows, rng: rng.integers(1, 5, rows),
    ),
    # A convolution with an addend, as ONNX Runtime's optimiser writes residual blocks.
    cut_trap(
        "convolution with an addend of its rows",
        "(float[N,1,4] x, float[N,1,4] u) => (float[N,1,4] y)",
        "w = Constant<value=float[1,1,3]{1.0,2.0,3.0}>()  b = Constant<value_floats=[0.5]>()  "
        'y = com.microsoft.FusedConv<pads=[1,1],activation="Relu">(x, w, b, u)',
        x=real("n", 1, 4),
        u=real("n", 1, 4),
    ),
    whole_trap(
        "convolution with an addend that has a row for each",
        "(float[N,1,4] x) => (float[N,1,4] y)",
        "w = Constant<value=float[1,1,3]{1.0,2.0,3.0}>()  b = Constant<value_floats=[0.5]>()  "
        "h = Constant<value_floats=[1.0,2.0,3.0,4.0,5.0]>()  f = Constant<value_ints=[5,1,1]>()  "
        "k = Constant<value_ints=[5,1,4]>()  r = Reshape(h, f)  u = Expand(r, k)  "
        'y = com.microsoft.FusedConv<pads=[1,1],activation="Relu">(x, w, b, u)',
        x=real("n", 1, 4),
    ),
    # Sizes that ONNX's inference gets wrong, and axes that are counted from the last.
    cut_trap(
        "spectra of one side, by default",
        "(float[N,16,1] x) => (float[N,A,B,2] y)",
        "s = Constant<value_int=4>()  l = Constant<value_int=8>()  y = STFT(x, s, , l)",
        x=real("n", 16, 1),
    ),
    cut_trap(
        "scan that stacks on the last axis",
        "(float[N,4] x) => (float[N] e, float[N,4] y)",
        "s = ReduceSum<keepdims=0>(x, one)  "
        "e, y = Scan<num_scan_inputs=1,scan_input_axes=[1],scan_output_axes=[-1],"
        "body=b (float[N] t, float[N] c) => (float[N] u, float[N] v) "
        "{ u = Add(t, c)  v = Identity(u) }>(s, x)",
        x=real("n", 4),
    ),
)
"""Graphs, with whether their rows may be cut."""
