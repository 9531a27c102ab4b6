"""Graphs whose sizes or values follow from the number of rows; see `row_traps`."""

from __future__ import annotations

from row_traps import SAME, WIDE, Trap, cut_trap, real, whole, whole_trap

SIZES: tuple[Trap, ...] = (
    # Sizes of other axes that follow from the number of rows.
    whole_trap(
        "pad by rows",
        "(float[N,3] x) => (float[N,M] y)",
        "p = Concat<axis=0>(zero, zero, zero, n)  y = Pad(x, p)",
    ),
    whole_trap(
        "pad named axis by rows",
        "(float[N,3] x) => (float[N,M] y)",
        "p = Concat<axis=0>(n, zero)  y = Pad(x, p, , one)",
    ),
    whole_trap(
        "pad value is rows",
        "(float[N,3] x) => (float[N,M] y)",
        "p = Constant<value_ints=[0,1,0,1]>()  v = Squeeze(real)  y = Pad(x, p, v)",
    ),
    whole_trap(
        "grid as high as rows",
        "(float[N,2,3] x) => (float[N,H,W,2] y)",
        "c = Constant<value_ints=[1,3]>()  s = Concat<axis=0>(n, c, n)  y = AffineGrid(x, s)",
        20,
        x=real("n", 2, 3),
    ),
    cut_trap(
        "grid of fixed size",
        "(float[N,2,3] x) => (float[N,3,4,2] y)",
        "c = Constant<value_ints=[1,3,4]>()  s = Concat<axis=0>(n, c)  y = AffineGrid(x, s)",
        20,
        x=real("n", 2, 3),
    ),
    whole_trap(
        "resize to rows",
        "(float[N,2,3,3] x) => (float[N,2,H,W] y)",
        'c = Constant<value_ints=[2,3]>()  s = Concat<axis=0>(n, c, n)  y = Resize<mode="nearest">'
        "(x, , , s)",
        x=real("n", 2, 3, 3),
    ),
    whole_trap(
        "resize by rows",
        "(float[N,2,3,3] x) => (float[N,2,H,W] y)",
        "c = Constant<value=float[3]{1.0,1.0,1.0}>()  s = Concat<axis=0>(c, real)  "
        'y = Resize<mode="nearest">(x, , s)',
        x=real("n", 2, 3, 3),
    ),
    whole_trap(
        "expand to rows",
        "(float[N,1] x) => (float[N,M] y)",
        "s = Concat<axis=0>(n, n)  y = Expand(x, s)",
        x=real("n", 1),
    ),
    whole_trap(
        "expand in front",
        "(float[N,3] x) => (float[A,N,3] y)",
        "s = Concat<axis=0>(n, one, one)  y = Expand(x, s)",
    ),
    whole_trap(
        "tile by rows",
        "(float[N,3] x) => (float[N,M] y)",
        "s = Concat<axis=0>(one, n)  y = Tile(x, s)",
    ),
    whole_trap(
        "split at rows",
        "(float[N,9] x) => (float[N,1] y)",
        "k = Constant<value_ints=[9]>()  d = Sub(k, n)  s = Concat<axis=0>(n, d)  "
        "a, b = Split<axis=1>(x, s)  y = ReduceSum(a, one)",
        x=real("n", 9),
    ),
    whole_trap("slice up to rows", WIDE, "y = Slice(x, zero, n, one)", x=real("n", 9)),
    whole_trap("slice from rows", WIDE, "m = Neg(n)  y = Slice(x, m, far, one)", x=real("n", 9)),
    whole_trap("slice by rows", WIDE, "y = Slice(x, zero, far, one, n)", x=real("n", 9)),
    whole_trap("crop to rows", WIDE, "y = CenterCropPad<axes=[1]>(x, n)", x=real("n", 9)),
    whole_trap("column of rows", WIDE, "k = Sub(n, one)  y = Gather<axis=1>(x, k)", x=real("n", 9)),
    whole_trap("column from the end", WIDE, "k = Neg(n)  y = Gather<axis=1>(x, k)", x=real("n", 9)),
    whole_trap("top rows", WIDE, "y, i = TopK(x, n)", x=real("n", 9)),
    whole_trap(
        "classes by rows",
        "(int64[N] x) => (float[N,M] y)",
        "v = Constant<value=float[2]{0.0,1.0}>()  y = OneHot(x, n, v)",
        x=whole("n", "n"),
    ),
    whole_trap(
        "one-hot value is rows",
        "(int64[N] x) => (float[N,5] y)",
        "d = Constant<value_ints=[5]>()  f = Cast<to=1>(zero)  v = Concat<axis=0>(f, real)  "
        "y = OneHot(x, d, v)",
        x=whole(3, "n"),
    ),
    whole_trap(
        "diagonal of rows",
        "(float[N,5,5] x) => (float[N,5,5] y)",
        "y = Trilu(x, count)",
        x=real("n", 5, 5),
    ),
    whole_trap(
        "spectrum of rows",
        "(float[N,8,1] x) => (float[N,M,2] y)",
        "y = DFT<axis=1>(x, count)",
        17,
        x=real("n", 8, 1),
    ),
    whole_trap(
        "frames by rows",
        "(float[N,32,1] x) => (float[N,F,5,2] y)",
        "k = Constant<value_int=8>()  y = STFT(x, count, , k)",
        17,
        x=real("n", 32, 1),
    ),
    whole_trap(
        "matrix of rows",
        "(float[N,3] x) => (float[N,M] y)",
        "k = Constant<value_ints=[3]>()  s = Concat<axis=0>(k, n)  "
        "g = ConstantOfShape<value=float[1]{1.0}>(s)  y = MatMul(x, g)",
    ),
    whole_trap(
        "kernel of rows",
        "(float[N,2,9] x) => (float[N,1,M] y)",
        "k = Constant<value_ints=[1,2]>()  s = Concat<axis=0>(k, n)  "
        "g = ConstantOfShape<value=float[1]{1.0}>(s)  y = Conv(x, g)",
        x=real("n", 2, 9),
    ),
    whole_trap(
        "grid of rows",
        "(float[N,1,4,4] x) => (float[N,1,H,W] y)",
        "k = Constant<value_ints=[3,2]>()  s = Concat<axis=0>(n, n, k)  g = ConstantOfShape(s)  "
        "y = GridSample(x, g)",
        x=real("n", 1, 4, 4),
    ),
    whole_trap(
        "reshape to rows",
        "(float[N,6] x) => (float[A,B] y)",
        "s = Concat<axis=0>(back, n)  y = Reshape(x, s)",
        x=real("n", 6),
    ),
    cut_trap(
        "reshape with rows first",
        "(float[N,6] x) => (float[N,2,3] y)",
        "k = Constant<value_ints=[2,3]>()  s = Concat<axis=0>(n, k)  y = Reshape(x, s)",
        x=real("n", 6),
    ),
    # Values that follow from the number of rows, or from a row's position.
    whole_trap("divided by rows", SAME, "y = Div(x, real)"),
    whole_trap("divided by elements", SAME, "k = Size(x)  f = Cast<to=1>(k)  y = Div(x, f)"),
    whole_trap(
        "clipped at rows",
        SAME,
        "v = Squeeze(real)  w = Neg(v)  k = Mul(x, real)  y = Clip(k, w, v)",
    ),
    whole_trap("power of rows", SAME, "a = Abs(x)  y = Pow(a, real)"),
    whole_trap(
        "remainder of rows",
        "(int64[N,3] x) => (int64[N,3] y)",
        "y = Mod(x, n)",
        x=whole(20, "n", 3),
    ),
    whole_trap("slope of rows", SAME, "y = PRelu(x, real)"),
    whole_trap(
        "quantised by rows",
        "(float[N,3] x) => (uint8[N,3] y)",
        "v = Squeeze(real)  y = QuantizeLinear(x, v)",
    ),
    whole_trap(
        "many or few rows",
        SAME,
        "k = Constant<value_ints=[4]>()  c = Greater(n, k)  w = Neg(x)  y = Where(c, x, w)",
    ),
    whole_trap(
        "odd or even rows",
        SAME,
        "k = Constant<value_ints=[2]>()  c = Mod(n, k)  f = Cast<to=1>(c)  y = Add(x, f)",
    ),
    whole_trap(
        "length of a slice",
        SAME,
        "c = ConstantOfShape(n)  t = Slice(c, zero, far)  k = Shape(t)  f = Cast<to=1>(k)  "
        "y = Div(x, f)",
    ),
    whole_trap(
        "length of a concatenation",
        SAME,
        "c = ConstantOfShape<value=int64[1]{1}>(n)  t = Concat<axis=0>(c, n)  k = Shape(t)  "
        "f = Cast<to=1>(k)  y = Div(x, f)",
    ),
    whole_trap(
        "sum of ones",
        SAME,
        "c = ConstantOfShape<value=float[1]{1.0}>(n)  t = ReduceSum(c, zero)  y = Div(x, t)",
    ),
    whole_trap(
        "last of a range",
        SAME,
        "r = Range(z, count, o)  t = Slice(r, back, far)  f = Cast<to=1>(t)  y = Sub(x, f)",
    ),
    whole_trap(
        "places of ones",
        SAME,
        "c = ConstantOfShape<value=int64[1]{1}>(n)  p = NonZero(c)  "
        "m = ReduceMax<keepdims=0>(p, one)  f = Cast<to=1>(m)  y = Sub(x, f)",
    ),
    whole_trap(
        "positions",
        SAME,
        "r = Range(z, count, o)  f = Cast<to=1>(r)  u = Unsqueeze(f, one)  y = Add(x, u)",
    ),
    whole_trap(
        "running count",
        "(float[N,3] x) => (float[N] y)",
        "c = ConstantOfShape<value=float[1]{1.0}>(n)  y = CumSum(c, z)",
    ),
    whole_trap(
        "window of rows",
        "(float[N,9] x) => (float[N] y)",
        "w = HannWindow(count)  a = ReduceSum<keepdims=0>(x, one)  y = Mul(a, w)",
        17,
        x=real("n", 9),
    ),
    whole_trap("identity matrix", SAME, "e = EyeLike(x)  y = Add(x, e)"),
    whole_trap("triangle", SAME, "y = Trilu(x)"),
    cut_trap("constant for each row", "(float[N,3] x) => (float[N] y)", "y = ConstantOfShape(n)"),
    cut_trap(
        "broadcast to rows",
        SAME,
        "s = Shape(x)  c = Constant<value=float[1,3]{1.0,2.0,3.0}>()  e = Expand(c, s)  "
        "y = Add(x, e)",
    ),
    cut_trap("gather by positions", SAME, "r = Range(z, count, o)  y = Gather(x, r)"),
    whole_trap(
        "gather by positions from the end",
        SAME,
        "r = Range(z, count, o)  k = Sub(count, o)  b = Sub(k, r)  y = Gather(x, b)",
    ),
    whole_trap(
        "gather by parity",
        "(float[N,3] x) => (float[N,3] y)",
        "r = Range(z, count, o)  t = Add(o, o)  k = Mod(r, t)  g = Gather(x, k)  y = Add(x, g)",
        x=real("2n", 3),
    ),
)
