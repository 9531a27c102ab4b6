"""Graphs whose rows meet, move or leave, or only seem to; see `row_traps`."""

from __future__ import annotations

from row_traps import SAME, Trap, cut_trap, real, whole, whole_trap, words

MEETING: tuple[Trap, ...] = (
    # Rows that meet.
    whole_trap("running sum", SAME, "y = CumSum(x, z)"),
    whole_trap("minus the first", SAME, "f = Gather(x, zero)  y = Sub(x, f)"),
    whole_trap("minus the last", SAME, "f = Gather(x, back)  y = Sub(x, f)"),
    whole_trap("divided by the largest", SAME, "m = ReduceMax<keepdims=0>(x)  y = Div(x, m)"),
    whole_trap(
        "every pair",
        "(float[N,1] x) => (float[N] y)",
        "t = Transpose(x)  m = Max(x, t)  y = ReduceMean<keepdims=0>(m, one)",
        x=real("n", 1),
    ),
    whole_trap(
        "attention over rows",
        SAME,
        "t = Transpose(x)  m = MatMul(x, t)  s = Softmax(m)  y = MatMul(s, x)",
    ),
    whole_trap("covariance", SAME, "t = Transpose(x)  c = MatMul(t, x)  y = MatMul(x, c)"),
    whole_trap(
        "letters shared by operands",
        "(float[N,3] x) => (float[N,N] y)",
        'y = Einsum<equation="ia,ja->ij">(x, x)',
    ),
    whole_trap(
        "diagonal",
        "(float[N,N] x) => (float[N] y)",
        'y = Einsum<equation="ii->i">(x)',
        x=real("n", "n"),
    ),
    cut_trap(
        "diagonal of each row",
        "(float[N,3,3] x) => (float[N,3] y)",
        'y = Einsum<equation="iaa->ia">(x)',
        x=real("n", 3, 3),
    ),
    whole_trap("softmax over rows", SAME, "y = Softmax<axis=-2>(x)"),
    whole_trap("hardmax over rows", SAME, "y = Hardmax<axis=0>(x)"),
    whole_trap("norm over rows", SAME, "y = LpNormalization<axis=0>(x)"),
    whole_trap(
        "flattened softmax",
        SAME,
        "f = Flatten<axis=0>(x)  s = Softmax(f)  k = Shape(x)  y = Reshape(s, k)",
    ),
    whole_trap(
        "batch statistics",
        "(float[N,3,4] x) => (float[N,3,4] y)",
        "s = Constant<value=float[3]{1.0,2.0,3.0}>()  b = Constant<value=float[3]{0.0,1.0,2.0}>()  "
        "m = Constant<value=float[3]{0.5,1.0,2.0}>()  v = Constant<value=float[3]{1.5,1.0,2.0}>()  "
        "y, m2, v2 = BatchNormalization<training_mode=1>(x, s, b, m, v)",
        x=real("n", 3, 4),
    ),
    whole_trap(
        "statistics over all axes",
        "(float[N,3,2,2] x) => (float[N,3,2,2] y)",
        "y = MeanVarianceNormalization(x)",
        x=real("n", 3, 2, 2),
    ),
    cut_trap(
        "statistics of each picture",
        "(float[N,3,2,2] x) => (float[N,3,2,2] y)",
        "y = MeanVarianceNormalization<axes=[2,3]>(x)",
        x=real("n", 3, 2, 2),
    ),
    whole_trap(
        "pool over three rows",
        "(float[N,4,4] x) => (float[N,4,4] y)",
        "k = Constant<value_ints=[0,1]>()  u = Unsqueeze(x, k)  "
        "p = MaxPool<kernel_shape=[3,1,1],pads=[1,0,0,1,0,0]>(u)  y = Squeeze(p, k)",
        x=real("n", 4, 4),
    ),
    cut_trap(
        "pool inside a row",
        "(float[N,4] x) => (float[N,4] y)",
        "u = Unsqueeze(x, zero)  p = MaxPool<kernel_shape=[3],pads=[1,1]>(u)  y = Squeeze(p, zero)",
        x=real("n", 4),
    ),
    whole_trap(
        "rows as channels",
        "(float[1,N,4,4] x) => (float[1,N,4,4] y)",
        "y = LRN<size=3>(x)",
        x=real(1, "n", 4, 4),
    ),
    whole_trap(
        "spectrum over rows",
        "(float[1,N,1] x) => (float[1,N,2] y)",
        "y = DFT(x)",
        17,
        x=real(1, "n", 1),
    ),
    whole_trap(
        "space to depth",
        "(float[1,1,N,4] x) => (float[1,4,H,W] y)",
        "y = SpaceToDepth<blocksize=2>(x)",
        x=real(1, 1, "2n", 4),
    ),
    whole_trap(
        "attention without a batch",
        "(float[N,8] x) => (float[N,8] y)",
        "u = Unsqueeze(x, zero)  a = Attention<q_num_heads=2,kv_num_heads=2>(u, u, u)  "
        "y = Squeeze(a, zero)",
        23,
        x=real("n", 8),
    ),
    cut_trap(
        "attention inside a row",
        "(float[N,3,8] x) => (float[N,3,8] y)",
        "y = Attention<q_num_heads=2,kv_num_heads=2>(x, x, x)",
        23,
        x=real("n", 3, 8),
    ),
    whole_trap(
        "recurrence over rows",
        "(float[N,2] x) => (float[N,3] y)",
        "w = Constant<value=float[1,3,2]{0.1,0.2,0.3,0.4,0.5,0.6}>()  "
        "r = Constant<value=float[1,3,3]{0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9}>()  "
        "u = Unsqueeze(x, one)  h = RNN<hidden_size=3>(u, w, r)  k = Constant<value_ints=[1,2]>()  "
        "y = Squeeze(h, k)",
        x=real("n", 2),
    ),
    whole_trap(
        "lengths of rows",
        "(float[N,9,2] x) => (float[N,3] y)",
        "w = Constant<value=float[1,3,2]{0.1,0.2,0.3,0.4,0.5,0.6}>()  "
        "r = Constant<value=float[1,3,3]{0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9}>()  "
        "t = Transpose<perm=[1,0,2]>(x)  e = Expand(n, n)  l = Cast<to=6>(e)  "
        "s, h = RNN<hidden_size=3>(t, w, r, , l)  y = Squeeze(h, zero)",
        x=real("n", 9, 2),
    ),
    whole_trap(
        "reversed in time by rows",
        "(float[N,4,2] x) => (float[N,4,2] y)",
        "k = Constant<value_ints=[4]>()  l = Expand(n, k)  "
        "y = ReverseSequence<batch_axis=1,time_axis=0>(x, l)",
        x=real("n", 4, 2),
    ),
    cut_trap(
        "reversed in time",
        "(float[N,4,2] x, int64[N] l) => (float[N,4,2] y)",
        "y = ReverseSequence<batch_axis=0,time_axis=1>(x, l)",
        x=real("n", 4, 2),
        l=lambda rows, rng: rng.integers(1, 5, rows),
    ),
    whole_trap(
        "scattered over rows",
        "(float[N,3] x, int64[N,3] i) => (float[N,3] y)",
        "y = ScatterElements<axis=0>(x, i, x)",
        x=real("n", 3),
        i=whole("n", "n", 3),
    ),
    cut_trap(
        "scattered inside a row",
        "(float[N,3] x, int64[N,3] i) => (float[N,3] y)",
        "y = ScatterElements<axis=1>(x, i, x)",
        x=real("n", 3),
        i=whole(3, "n", 3),
    ),
    whole_trap(
        "picked from all rows",
        "(float[N,4] x, int64[N,1] i) => (float[N,4] y)",
        "y = GatherND(x, i)",
        x=real("n", 4),
        i=whole("n", "n", 1),
    ),
    cut_trap(
        "picked from its row",
        "(float[N,4] x, int64[N,1] i) => (float[N] y)",
        "y = GatherND<batch_dims=1>(x, i)",
        x=real("n", 4),
        i=whole(4, "n", 1),
    ),
    whole_trap(
        "messages along edges",
        "(float[V,4] x, int64[E] s, int64[E,1] d) => (float[V,4] y)",
        "m = Gather(x, s)  k = Shape(x)  e = ConstantOfShape(k)  "
        'y = ScatterND<reduction="add">(e, d, m)',
        x=real("n", 4),
        s=whole("n", "n"),
        d=whole("n", "n", 1),
    ),
    # Rows that move.
    whole_trap(
        "rolled",
        SAME,
        "a = Slice(x, one, far, zero)  b = Slice(x, zero, one, zero)  y = Concat<axis=0>(a, b)",
    ),
    whole_trap(
        "turned", SAME, "e = Constant<value_ints=[-9999]>()  y = Slice(x, back, e, zero, back)"
    ),
    whole_trap(
        "every second",
        "(float[N,3] x) => (float[M,3] y)",
        "k = Add(one, one)  y = Slice(x, zero, far, zero, k)",
    ),
    whole_trap(
        "the first five",
        "(float[N,3] x) => (float[M,3] y)",
        "k = Constant<value_ints=[4]>()  y = Slice(x, zero, k, zero)",
    ),
    whole_trap("shifted by a pad", SAME, "p = Constant<value_ints=[1,0,-1,0]>()  y = Pad(x, p)"),
    whole_trap(
        "a row in front",
        "(float[N,3] x) => (float[M,3] y)",
        "c = Constant<value=float[1,3]{1.0,2.0,3.0}>()  y = Concat<axis=0>(c, x)",
    ),
    whole_trap(
        "shifted by a row in front",
        SAME,
        "c = Constant<value=float[1,3]{1.0,2.0,3.0}>()  v = Concat<axis=0>(c, x)  "
        "y = Slice(v, zero, back, zero)",
    ),
    whole_trap(
        "halves swapped",
        "(float[N,3] x) => (float[N,3] y)",
        "a, b = Split<axis=0,num_outputs=2>(x)  y = Concat<axis=0>(b, a)",
        x=real("2n", 3),
    ),
    whole_trap(
        "reshaped in another order",
        "(float[N,4] x) => (float[N,4] y)",
        "k = Constant<value_ints=[4,-1]>()  a = Reshape(x, k)  y = Transpose(a)",
        x=real("n", 4),
    ),
    whole_trap(
        "transposed and flattened",
        "(float[N,4] x) => (float[N,4] y)",
        "a = Transpose(x)  k = Constant<value_ints=[-1,4]>()  y = Reshape(a, k)",
        x=real("n", 4),
    ),
    cut_trap("transposed", "(float[N,3] x) => (float[3,N] y)", "y = Transpose(x)"),
    whole_trap(
        "sequence of rows",
        "(float[N,3] x) => (float[1,3] y)",
        "l = SplitToSequence<axis=0>(x)  y = SequenceAt(l, z)",
    ),
    whole_trap(
        "as many rows as a sequence",
        SAME,
        "l = SplitToSequence<axis=0>(x)  k = SequenceLength(l)  f = Cast<to=1>(k)  y = Add(x, f)",
    ),
    # Rows that leave, and control flow.
    whole_trap(
        "rows above zero",
        "(float[N,3] x) => (float[M,3] y)",
        "m = ReduceSum<keepdims=0>(x, one)  f = Cast<to=1>(z)  c = Greater(m, f)  "
        "y = Compress<axis=0>(x, c)",
    ),
    cut_trap(
        "columns that stay",
        "(float[N,3] x) => (float[N,2] y)",
        "c = Constant<value=bool[3]{1,0,1}>()  y = Compress<axis=1>(x, c)",
    ),
    whole_trap("distinct", "(int64[N] x) => (int64[M] y)", "y = Unique(x)", x=whole(3, "n")),
    whole_trap("distinct columns", "(float[N,3] x) => (float[N,M] y)", "y = Unique<axis=1>(x)"),
    whole_trap(
        "branch by rows",
        SAME,
        "k = Constant<value_int=4>()  c = Greater(count, k)  y = If(c) <then_branch = t () => "
        "(float[N,3] a) { a = Neg(x) }, else_branch = e () => (float[N,3] b) { b = Identity(x) }>",
    ),
    whole_trap(
        "branch by all rows",
        SAME,
        "m = ReduceMax<keepdims=0>(x)  k = Constant<value=float{1.5}>()  c = Greater(m, k)  "
        "y = If(c) <then_branch = t () => (float[N,3] a) { a = Neg(x) }, "
        "else_branch = e () => (float[N,3] b) { b = Identity(x) }>",
    ),
    whole_trap(
        "loop of rows",
        SAME,
        "c = Constant<value=bool{1}>()  y = Loop(count, c, x) <body = t "
        "(int64 i, bool d, float[N,3] a) => (bool e, float[N,3] b) "
        "{ e = Identity(d) b = Add(a, a) }>",
    ),
    whole_trap(
        "columns up to rows",
        "(float[N,9] x) => (float[N,M] y)",
        "c = Constant<value=bool{1}>()  w = Loop(count, c) <body = t (int64 i, bool d) => "
        "(bool e, float[N] b) { e = Identity(d) b = Gather<axis=1>(x, i) }>  y = Transpose(w)",
        x=real("n", 9),
    ),
    cut_trap("optional", SAME, "p = Optional(x)  y = OptionalGetElement(p)"),
    cut_trap(
        "text",
        "(string[N] x) => (string[N] y)",
        'c = Constant<value_strings=["a"]>()  y = StringConcat(x, c)',
        20,
        x=words("n"),
    ),
    # Operators with a rule of their own that keep rows apart.
    cut_trap(
        "pooled and unpooled",
        "(float[N,3,4,4] x) => (float[N,3,4,4] y)",
        "v, i = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)  "
        "y = MaxUnpool<kernel_shape=[2,2],strides=[2,2]>(v, i)",
        x=real("n", 3, 4, 4),
    ),
    cut_trap(
        "deformed",
        "(float[N,1,3,3] x, float[N,8,2,2] d) => (float[N,1,2,2] y)",
        "w = Constant<value=float[1,1,2,2]{1.0,2.0,3.0,4.0}>()  "
        "y = DeformConv<kernel_shape=[2,2],pads=[0,0,0,0]>(x, w, d)",
        19,
        x=real("n", 1, 3, 3),
        d=real("n", 8, 2, 2),
    ),
    cut_trap(
        "cache updated",
        "(float[N,2,8,4] x, float[N,2,1,4] u) => (float[N,2,8,4] y)",
        "y = TensorScatter(x, u)",
        24,
        x=real("n", 2, 8, 4),
        u=real("n", 2, 1, 4),
    ),
)
