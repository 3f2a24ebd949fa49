"""Small networks, one for each way that an operator is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tests.planning.networks import network, normal

W = normal(4, 3, 3, 3)
B = normal(4, seed=1)


def w(*shape: int) -> np.ndarray:
    return normal(*shape, seed=len(shape)) * 0.3


def i(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


IMAGE = "float[n, 3, 8, 9] x"
LINE = "float[n, 3, 10] x"

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    # convolutions
    "conv": (IMAGE, "float[n, 4, 6, 7] y", "y = Conv(x, w, b)", {"w": W, "b": B}),
    "conv_same": (IMAGE, "float[n, 4, 8, 9] y", "y = Conv<pads = [1, 1, 1, 1]>(x, w, b)", {"w": W, "b": B}),
    "conv_stride": (
        IMAGE, "float[n, 4, 4, 5] y", "y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)", {"w": W}
    ),
    "conv_asymmetric": (
        IMAGE, "float[n, 4, 7, 9] y", "y = Conv<pads = [0, 2, 1, 0]>(x, w, b)", {"w": W, "b": B}
    ),
    "conv_same_upper": (
        IMAGE, "float[n, 4, 4, 5] y", 'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', {"w": W}
    ),
    "conv_same_lower": (
        IMAGE, "float[n, 4, 4, 5] y", 'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)', {"w": W}
    ),
    "conv_dilated": (
        IMAGE, "float[n, 4, 8, 9] y", "y = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, w)", {"w": W}
    ),
    "conv_relu": (IMAGE, "float[n, 4, 6, 7] y", "c = Conv(x, w, b) y = Relu(c)", {"w": W, "b": B}),
    "conv_relu6": (
        IMAGE, "float[n, 4, 6, 7] y", "c = Conv(x, w) y = Clip(c, l, h)",
        {"w": W * 9, "l": np.float32(0), "h": np.float32(6)},
    ),
    "conv_clip": (
        IMAGE, "float[n, 4, 6, 7] y", "c = Conv(x, w) y = Clip(c, l, h)",
        {"w": W, "l": np.float32(-0.5), "h": np.float32(1.25)},
    ),
    "depthwise": (
        IMAGE, "float[n, 3, 8, 9] y", "y = Conv<group = 3, pads = [1, 1, 1, 1]>(x, w, b)",
        {"w": w(3, 1, 3, 3), "b": w(3)},
    ),
    "depthwise_multiplier": (
        IMAGE, "float[n, 6, 3, 4] y", "y = Conv<group = 3, strides = [2, 2]>(x, w)", {"w": w(6, 1, 3, 3)}
    ),
    "depthwise_dilated": (
        IMAGE, "float[n, 3, 4, 5] y", "y = Conv<group = 3, dilations = [2, 2]>(x, w)", {"w": w(3, 1, 3, 3)}
    ),
    "grouped": ("float[n, 6, 8, 9] x", "float[n, 4, 6, 7] y", "y = Conv<group = 2>(x, w, b)",
                {"w": w(4, 3, 3, 3), "b": B}),
    "conv_1d": (LINE, "float[n, 4, 5] y", "y = Conv<pads = [1, 1], strides = [2]>(x, w, b)",
                {"w": w(4, 3, 3), "b": B}),
    "conv_1d_twice": (
        LINE, "float[n, 4, 8] y", "c = Conv<pads = [1, 1]>(x, w, b) r = Relu(c) y = Conv(r, v)",
        {"w": w(4, 3, 3), "b": B, "v": w(4, 4, 3)},
    ),
    "depthwise_1d": (LINE, "float[n, 3, 10] y", "y = Conv<group = 3, pads = [1, 1]>(x, w)", {"w": w(3, 1, 3)}),
    "transposed": (
        IMAGE, "float[n, 4, 10, 11] y", "y = ConvTranspose(x, w, b)", {"w": w(3, 4, 3, 3), "b": B}
    ),
    "transposed_same": (
        IMAGE, "float[n, 4, 16, 18] y", "y = ConvTranspose<strides = [2, 2]>(x, w)", {"w": w(3, 4, 2, 2)}
    ),
    "transposed_cropped": (
        IMAGE, "float[n, 4, 16, 18] y",
        "c = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(x, w, b) y = Relu(c)",
        {"w": w(3, 4, 3, 3), "b": B},
    ),
    "transposed_dilated": (
        "float[2, 3, 8, 9] x", "float[2, 4, 12, 13] y", "y = ConvTranspose<dilations = [2, 2]>(x, w)",
        {"w": w(3, 4, 3, 3)},
    ),
    "transposed_1d": (LINE, "float[n, 4, 20] y", "y = ConvTranspose<strides = [2], pads = [1, 1]>(x, w)",
                      {"w": w(3, 4, 4)}),
    # products
    "gemm": ("float[n, 5] x", "float[n, 4] y", "y = Gemm(x, w, b)", {"w": w(5, 4), "b": B}),
    "gemm_transposed": (
        "float[n, 5] x", "float[n, 4] y", "y = Gemm<transB = 1, alpha = 2.0, beta = 0.5>(x, w, b)",
        {"w": w(4, 5), "b": B},
    ),
    "gemm_without_bias": ("float[n, 5] x", "float[n, 4] y", "g = Gemm<alpha = 2.0>(x, w) y = Relu(g)", {"w": w(5, 4)}),
    "gemm_table": ("float[3, 5] x", "float[3, 4] y", "y = Gemm<beta = 0.5>(x, w, b)", {"w": w(5, 4), "b": w(3, 4)}),
    "gemm_computed_bias": ("float[n, 5] x, float[n, 4] z", "float[n, 4] y", "y = Gemm(x, w, z)", {"w": w(5, 4)}),
    "flatten_gemm_table": (
        "float[2, 3, 8, 9] x", "float[2, 5] y", "c = Conv(x, w) f = Flatten(c) y = Gemm<alpha = 0.5>(f, v, b)",
        {"w": W, "v": w(168, 5), "b": w(2, 5)},
    ),
    "gemm_scalar_bias": ("float[n, 5] x", "float[n, 4] y", "y = Gemm(x, w, b)", {"w": w(5, 4), "b": w(1)}),
    "matmul": ("float[n, 7, 5] x", "float[n, 7, 4] y", "m = MatMul(x, w) a = Add(m, b) y = Relu(a)",
               {"w": w(5, 4), "b": B}),
    "matmul_two": ("float[n, 2, 7, 5] x, float[n, 2, 5, 3] z", "float[n, 2, 7, 3] y", "y = MatMul(x, z)", {}),
    "matmul_transposed": (
        "float[n, 2, 7, 5] x, float[n, 2, 3, 5] z", "float[n, 2, 7, 3] y",
        "t = Transpose<perm = [0, 1, 3, 2]>(z) y = MatMul(x, t)", {},
    ),
    "matmul_stack": ("float[2, 7, 5] x", "float[2, 7, 4] y", "y = MatMul(x, w)", {"w": w(2, 5, 4)}),
    "flatten_gemm": (
        IMAGE, "float[n, 5] y", "c = Conv(x, w) f = Flatten(c) y = Gemm<transB = 1>(f, v, b)",
        {"w": W, "v": w(5, 168), "b": w(5)},
    ),
    # pools
    "max_pool": (IMAGE, "float[n, 3, 4, 4] y", "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)", {}),
    "max_pool_padded": (
        IMAGE, "float[n, 3, 4, 5] y", "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
        {},
    ),
    "max_pool_ceil": (
        IMAGE, "float[n, 3, 4, 5] y", "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", {}
    ),
    "max_pool_1d": (LINE, "float[n, 3, 5] y", "y = MaxPool<kernel_shape = [2], strides = [2]>(x)", {}),
    "average_pool": (IMAGE, "float[n, 3, 4, 4] y", "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)", {}),
    "average_pool_same": (IMAGE, "float[n, 3, 8, 9] y",
                          "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)", {}),
    "average_pool_counted": (
        IMAGE, "float[n, 3, 8, 9] y",
        "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)", {},
    ),
    "average_pool_padded": (
        IMAGE, "float[n, 3, 4, 5] y",
        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)", {},
    ),
    "average_pool_ceil": (
        IMAGE, "float[n, 3, 4, 5] y", "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", {}
    ),
    "average_pool_ceil_counted": (
        IMAGE, "float[n, 3, 5, 5] y",
        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, pads = [1, 1, 1, 1], "
        "count_include_pad = 1>(x)", {},
    ),
    "global_average_pool": (IMAGE, "float[n, 3, 1, 1] y", "y = GlobalAveragePool(x)", {}),
    "global_average_pool_1d": (LINE, "float[n, 3, 1] y", "y = GlobalAveragePool(x)", {}),
    "global_max_pool": (IMAGE, "float[n, 3, 1, 1] y", "y = GlobalMaxPool(x)", {}),
    "pool_head": (
        IMAGE, "float[n, 4] y", "p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, w)", {"w": w(3, 4)}
    ),
    # pairs
    **{
        f"{name.lower()}_pair": (
            "float[n, 3, 4, 5] x, float[n, 3, 4, 5] z", "float[n, 3, 4, 5] y", f"y = {name}(x, z)", {}
        )
        for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
    },
    "add_channel": (IMAGE, "float[n, 4, 6, 7] y", "c = Conv(x, w) y = Add(c, b)", {"w": W, "b": w(4, 1, 1)}),
    "mul_scalar": (IMAGE, "float[n, 3, 8, 9] y", "y = Mul(x, b)", {"b": np.float32(2)}),
    "add_three": (IMAGE, "float[n, 3, 8, 9] y", "y = Sum(x, x, x)", {}),
    "pow": (IMAGE, "float[n, 3, 8, 9] y", "a = Abs(x) y = Pow(a, b)", {"b": np.float32(1.5)}),
    "squeeze_excite": (
        IMAGE, "float[n, 4, 6, 7] y",
        "c = Conv(x, w) p = GlobalAveragePool(c) s = Conv(p, v) g = Sigmoid(s) y = Mul(c, g)",
        {"w": W, "v": w(4, 4, 1, 1)},
    ),
    "comparisons": (
        "float[n, 4] x, float[n, 4] z", "float[n, 4] y",
        "a = Greater(x, z) b = LessOrEqual(x, o) c = And(a, b) d = Not(c) e = Or(d, a) y = Where(e, x, z)",
        {"o": np.float32(0.5)},
    ),
    "greater_or_equal": (
        "float[n, 4] x, float[n, 4] z", "float[n, 4] y", "a = GreaterOrEqual(x, z) y = Cast<to = 1>(a)", {}
    ),
    "mod": ("int32[n, 4] x", "int32[n, 4] y", "y = Mod(x, d)", {"d": np.array([3, -3, 2, 5], np.int32)}),
    "gather_nd": ("float[n, 3, 5] x", "float[4] y", "y = GatherND(x, p)",
                  {"p": np.array([[0, 1, 2], [1, 2, 4], [0, 0, 0], [1, 1, 1]], np.int64)}),
    "filled": ("float[n, 3] x", "float[n, 3] y", "s = Shape(x) c = ConstantOfShape(s) y = Add(x, c)", {}),
    "counted": ("int32 x", "int32[t] y", "y = Range(a, x, b)", {"a": np.int32(0), "b": np.int32(1)}),
    "equal": ("int32[n, 4] x, int32[n, 4] z", "float[n, 4] y", "a = Equal(x, z) y = Cast<to = 1>(a)", {}),
    "xor": ("float[n, 4] x, float[n, 4] z", "float[n, 4] y",
            "a = Greater(x, o) b = Less(z, o) c = Xor(a, b) y = Cast<to = 1>(c)", {"o": np.float32(0.1)}),
    # singles
    **{
        name.lower(): (IMAGE, "float[n, 3, 8, 9] y", f"y = {name}(x)", {})
        for name in (
            "Abs", "Neg", "Sign", "Exp", "Sin", "Cos", "Floor", "Ceil", "Round", "Elu", "HardSwish", "Sigmoid", "Tanh",
            "Relu", "LeakyRelu", "Gelu", "Softplus", "Softsign", "HardSigmoid", "Selu", "Celu", "ThresholdedRelu",
            "Reciprocal", "Mish",
        )
    },
    "hard_sigmoid_sixth": (
        IMAGE, "float[n, 3, 8, 9] y", "y = HardSigmoid<alpha = 0.1666666716337204, beta = 0.5>(x)", {}
    ),
    "gelu_tanh": (IMAGE, "float[n, 3, 8, 9] y", 'y = Gelu<approximate = "tanh">(x)', {}),
    "celu_alpha": (IMAGE, "float[n, 3, 8, 9] y", "y = Celu<alpha = 0.5>(x)", {}),
    "sqrt_log": (IMAGE, "float[n, 3, 8, 9] y", "a = Abs(x) b = Sqrt(a) c = Add(b, o) y = Log(c)",
                 {"o": np.float32(0.5)}),
    "clip_low": (IMAGE, "float[n, 3, 8, 9] y", "y = Clip(x, l)", {"l": np.float32(-0.25)}),
    "clip_unit": (IMAGE, "float[n, 3, 8, 9] y", "y = Clip(x, l, h)", {"l": np.float32(0), "h": np.float32(1)}),
    "prelu": (IMAGE, "float[n, 3, 8, 9] y", "y = PRelu(x, a)", {"a": w(3, 1, 1)}),
    "prelu_one": (IMAGE, "float[n, 3, 8, 9] y", "y = PRelu(x, a)", {"a": np.full((1,), 0.2, np.float32)}),
    "prelu_conv": (IMAGE, "float[n, 4, 6, 7] y", "c = Conv(x, w) y = PRelu(c, a)", {"w": W, "a": w(4, 1, 1)}),
    "cast": (IMAGE, "float[n, 3, 8, 9] y", "a = Cast<to = 6>(x) y = Cast<to = 1>(a)", {}),
    # along axes
    **{
        f"{name.lower()}_{keep}": (
            IMAGE, f"float[n{', 1, 9' if keep else ', 9'}] y".replace("[n, 1", "[n, 1, 1"),
            f"y = {name}<keepdims = {keep}>(x, a)", {"a": i(1, 2)},
        )
        for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                     "ReduceSumSquare")
        for keep in (0, 1)
    },
    "reduce_conv": (IMAGE, "float[n, 6, 7] y", "c = Conv(x, w) y = ReduceMean<keepdims = 0>(c, a)",
                    {"w": W, "a": i(1)}),
    "reduce_conv_rows": (IMAGE, "float[n, 4, 7] y", "c = Conv(x, w) y = ReduceMax<keepdims = 0>(c, a)",
                         {"w": W, "a": i(2)}),
    "softmax": ("float[n, 7] x", "float[n, 7] y", "y = Softmax(x)", {}),
    "softmax_channels": (IMAGE, "float[n, 4, 6, 7] y", "c = Conv(x, w) y = Softmax<axis = 1>(c)", {"w": W}),
    "softmax_rows": (IMAGE, "float[n, 3, 8, 9] y", "y = Softmax<axis = 2>(x)", {}),
    "log_softmax": ("float[n, 7] x", "float[n, 7] y", "y = LogSoftmax(x)", {}),
    "lp_normalization": (IMAGE, "float[n, 3, 8, 9] y", "y = LpNormalization<axis = 1>(x)", {}),
    "arg_max": ("float[n, 7] x", "int64[n] y", "y = ArgMax<axis = 1, keepdims = 0>(x)", {}),
    "arg_min": ("float[n, 7, 2] x", "int64[n, 1, 2] y", "y = ArgMin<axis = 1>(x)", {}),
    "top_k": ("float[n, 7] x", "float[n, 3] y, int64[n, 3] z", "y, z = TopK(x, k)", {"k": i(3)}),
    "cum_sum": ("float[n, 7] x", "float[n, 7] y", "y = CumSum<reverse = 1>(x, a)", {"a": np.array(1, np.int64)}),
    # normalizations
    "layer_normalization": ("float[n, 6, 5] x", "float[n, 6, 5] y", "y = LayerNormalization(x, s, b)",
                            {"s": w(5), "b": w(5)}),
    "layer_normalization_two": ("float[n, 6, 5] x", "float[n, 6, 5] y", "y = LayerNormalization<axis = 1>(x, s, b)",
                                {"s": w(6, 5), "b": w(6, 5)}),
    "instance_normalization": (IMAGE, "float[n, 3, 8, 9] y", "y = InstanceNormalization(x, s, b)",
                               {"s": w(3), "b": w(3)}),
    "batch_normalization": (IMAGE, "float[n, 3, 8, 9] y", "y = BatchNormalization(x, s, b, m, v)",
                            {"s": w(3), "b": w(3), "m": w(3), "v": np.abs(w(3))}),
    "lrn": (IMAGE, "float[n, 3, 8, 9] y", "y = LRN<size = 3, alpha = 0.1>(x)", {}),
    # shapes and places
    "reshape": (IMAGE, "float[n, 6, 36] y", "y = Reshape(x, s)", {"s": i(0, 6, 36)}),
    "reshape_rows": (IMAGE, "float[n, 4, 42] y", "c = Conv(x, w) y = Reshape(c, s)", {"w": W, "s": i(0, 4, -1)}),
    "tokens": (
        IMAGE, "float[n, 42, 4] y", "c = Conv(x, w) r = Reshape(c, s) y = Transpose<perm = [0, 2, 1]>(r)",
        {"w": W, "s": i(0, 4, -1)},
    ),
    "shuffle": (
        IMAGE, "float[n, 4, 6, 7] y",
        "c = Conv(x, w) r = Reshape(c, s) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) y = Reshape(t, u)",
        {"w": W, "s": i(0, 2, 2, 6, 7), "u": i(0, 4, 6, 7)},
    ),
    "flatten": (IMAGE, "float[n, 216] y", "y = Flatten(x)", {}),
    "squeeze": ("float[n, 1, 5, 1] x", "float[n, 5] y", "y = Squeeze(x, a)", {"a": i(1, 3)}),
    "unsqueeze": ("float[n, 5] x", "float[n, 1, 5, 1] y", "y = Unsqueeze(x, a)", {"a": i(1, 3)}),
    "transpose": (IMAGE, "float[n, 9, 3, 8] y", "y = Transpose<perm = [0, 3, 1, 2]>(x)", {}),
    "concat": (IMAGE, "float[n, 7, 8, 9] y", "c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Concat<axis = 1>(c, x)",
               {"w": W}),
    "split": (IMAGE, "float[n, 3, 4, 9] y, float[n, 3, 4, 9] z", "y, z = Split<axis = 2, num_outputs = 2>(x)", {}),
    "split_sizes": (IMAGE, "float[n, 1, 8, 9] y, float[n, 2, 8, 9] z", "y, z = Split<axis = 1>(x, s)",
                    {"s": i(1, 2)}),
    "slice": (IMAGE, "float[n, 2, 3, 9] y", "y = Slice(x, b, e, a, s)",
              {"b": i(1, -7), "e": i(9, 7), "a": i(1, 2), "s": i(1, 2)}),
    "slice_backwards": (IMAGE, "float[n, 3, 8, 9] y", "y = Slice(x, b, e, a, s)",
                        {"b": i(-1), "e": i(-99), "a": i(2), "s": i(-1)}),
    "slice_conv": (IMAGE, "float[n, 2, 6, 7] y", "c = Conv(x, w) y = Slice(c, b, e, a)",
                   {"w": W, "b": i(1), "e": i(3), "a": i(1)}),
    "gather": (IMAGE, "float[n, 2, 8, 9] y", "y = Gather<axis = 1>(x, p)", {"p": i(2, -3)}),
    "gather_one": ("float[n, 3, 5] x", "float[n, 5] y", "y = Gather<axis = 1>(x, p)", {"p": np.array(0, np.int64)}),
    "embedding": ("int64[n, 4] x", "float[n, 4, 5] y", "y = Gather(w, x)", {"w": w(3, 5)}),
    "pad": (IMAGE, "float[n, 3, 10, 12] y", "y = Pad(x, p)", {"p": i(0, 0, 1, 0, 0, 0, 1, 3)}),
    "pad_number": (IMAGE, "float[n, 3, 10, 12] y", "y = Pad(x, p, v)",
                   {"p": i(0, 0, 1, 0, 0, 0, 1, 3), "v": np.float32(0.5)}),
    "pad_reflect": (IMAGE, "float[n, 3, 10, 12] y", 'y = Pad<mode = "reflect">(x, p)',
                    {"p": i(0, 0, 1, 0, 0, 0, 1, 3)}),
    "pad_channels": (IMAGE, "float[n, 6, 6, 7] y", "c = Conv(x, w) y = Pad(c, p)",
                     {"w": W, "p": i(0, 1, 0, 0, 0, 1, 0, 0)}),
    "expand": ("float[n, 1, 5] x", "float[n, 4, 5] y", "y = Expand(x, s)", {"s": i(1, 4, 5)}),
    "tile": ("float[n, 2, 5] x", "float[n, 4, 15] y", "y = Tile(x, s)", {"s": i(1, 2, 3)}),
    "depth_to_space": ("float[n, 8, 3, 4] x", "float[n, 2, 6, 8] y", "y = DepthToSpace<blocksize = 2>(x)", {}),
    "pixel_shuffle": ("float[n, 8, 3, 4] x", "float[n, 2, 6, 8] y",
                      'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)', {}),
    "space_to_depth": ("float[n, 2, 6, 8] x", "float[n, 8, 3, 4] y", "y = SpaceToDepth<blocksize = 2>(x)", {}),
    "shape": (IMAGE, "int64[4] y", "y = Shape(x)", {}),
    "one_hot": ("int64[n] x", "float[n, 4] y", "y = OneHot(x, d, v)",
                {"d": np.array(4, np.int64), "v": np.array([0, 1], np.float32)}),
    **{
        f"resize_{mode}_{rule}": (
            IMAGE, "float[n, 3, 16, 18] y",
            f'y = Resize<mode = "{mode}", coordinate_transformation_mode = "{rule}", nearest_mode = "{nearest}">'
            "(x, , f)",
            {"f": np.array([1, 1, 2, 2], np.float32)},
        )
        for mode, rule, nearest in (
            ("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor"),
            ("linear", "half_pixel", "floor"), ("linear", "align_corners", "floor"), ("linear", "asymmetric", "floor"),
            ("linear", "pytorch_half_pixel", "floor"),
        )
    },
    "resize_sizes": (IMAGE, "float[n, 3, 5, 13] y", 'y = Resize<mode = "linear">(x, , , s)', {"s": i(2, 3, 5, 13)}),
}  # fmt: skip
"""Name -> inputs, outputs, nodes, weights; see `tests.planning.networks.network`."""


def case(name: str) -> ir.Model:
    """Read one of the networks."""
    inputs, outputs, body, weights = CASES[name]
    return network(inputs, outputs, body, **weights)
