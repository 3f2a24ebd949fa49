"""Make the MXNet networks in this folder, and what MXNet itself computes with them.

Run with MXNet 1.9.1 (Python 3.11, numpy 1.23.5): `python make_golden.py`. Writes, for each network, NAME-symbol.json,
NAME-0000.params and NAME.npz with the inputs and each output under its name.
"""

import json
import os
from pathlib import Path

os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"  # networks run as they are written, fused only where they say so

import mxnet as mx
import numpy as np
from mxnet.contrib.quantization import quantize_model

FOLDER = Path(__file__).parent
S = mx.sym


def save(name, outputs, inputs, *, positive=()):
    """Write a network of several outputs with random parameters, and its results."""
    symbol = S.Group(outputs) if isinstance(outputs, list) else outputs
    random = np.random.default_rng(0)
    shapes = {key: value.shape for key, value in inputs.items()}
    arguments, _, auxiliary = symbol.infer_shape(**shapes)
    given = {key: mx.nd.array(value) for key, value in inputs.items()}
    arrays = {}
    for key, shape in zip(symbol.list_arguments(), arguments, strict=True):
        if key not in given and not key.endswith("label"):
            arrays[key] = mx.nd.array(random.normal(0, 0.5, shape))
    states = {
        key: mx.nd.array(random.uniform(0.5, 1.5, shape) if "var" in key else random.normal(0, 0.5, shape))
        for key, shape in zip(symbol.list_auxiliary_states(), auxiliary, strict=True)
    }
    run(symbol, name, given, arrays, states)
    return symbol, arrays, states


def run(symbol, name, given, arrays, states):
    """Compute, and write all files."""
    labels = {
        key: mx.nd.zeros((next(iter(given.values())).shape[0],))
        for key in symbol.list_arguments()
        if key.endswith("label")
    }
    executor = symbol.bind(mx.cpu(), {**given, **arrays, **labels}, aux_states=states, grad_req="null")
    results = executor.forward(is_train=False)
    names = symbol.list_outputs()
    compact = json.dumps(json.loads(symbol.tojson()), separators=(",", ":"))
    (FOLDER / f"{name}-symbol.json").write_text(compact + "\n")
    stored = {f"arg:{key}": value for key, value in arrays.items()}
    mx.nd.save(str(FOLDER / f"{name}-0000.params"), {**stored, **{f"aux:{key}": one for key, one in states.items()}})
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        **{f"in:{key}": value.asnumpy() for key, value in given.items()},
        **{
            f"out:{number}:{key}": value.asnumpy()
            for number, (key, value) in enumerate(zip(names, results, strict=True))
        },
    )


def images(*shape):
    """Return random real numbers."""
    return np.random.default_rng(1).normal(0, 1, shape).astype("float32")


def layers():
    """Layers on [N, C, H, W]."""
    x = S.Variable("data")
    pools = [
        S.Pooling(x, kernel=(3, 2), stride=(2, 2), pad=(1, 0), pool_type=kind, pooling_convention=rule,
                  count_include_pad=padded, name=f"{kind}_{rule}_{padded}")
        for kind in ("max", "avg") for rule in ("valid", "full") for padded in (True, False)
    ]  # fmt: skip
    outputs = [
        S.Convolution(x, kernel=(3, 3), num_filter=6, name="conv"),
        S.Convolution(x, kernel=(3, 2), stride=(2, 1), pad=(1, 2), dilate=(1, 2), num_filter=6, num_group=2, name="cg"),
        S.Convolution(x, kernel=(3, 3), num_filter=4, num_group=4, no_bias=True, name="depthwise"),
        S.Deconvolution(x, kernel=(4, 3), stride=(2, 2), pad=(1, 1), adj=(1, 0), num_filter=6, num_group=2, name="dc"),
        S.Deconvolution(x, kernel=(3, 2), stride=(2, 1), num_filter=2, no_bias=False, name="db"),
        S.FullyConnected(x, num_hidden=3, name="fc"),
        S.FullyConnected(x, num_hidden=3, flatten=False, no_bias=True, name="fc_last"),
        S.BatchNorm(x, name="bn"),
        S.BatchNorm(x, fix_gamma=False, eps=1e-2, use_global_stats=True, name="bn_gamma"),
        S.BatchNorm(x, fix_gamma=False, axis=-1, name="bn_last"),
        *[S.Activation(x, act_type=kind, name=kind) for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")],
        *[S.LeakyReLU(x, act_type=kind, slope=0.1, name=f"l_{kind}") for kind in ("leaky", "elu", "selu", "gelu")],
        S.LeakyReLU(x, act_type="prelu", name="prelu"),
        S.LeakyReLU(x, act_type="rrelu", name="rrelu")[0],
        *pools,
        S.Pooling(x, kernel=(2, 2), pool_type="sum", name="sum_pool"),
        S.Pooling(x, kernel=(2, 2), pool_type="lp", p_value=2, name="lp_pool"),
        S.Pooling(x, global_pool=True, kernel=(1, 1), pool_type="avg", name="global_avg"),
        S.Pooling(x, global_pool=True, kernel=(1, 1), pool_type="max", name="global_max"),
        S.Pooling_v1(x, kernel=(2, 2), stride=(2, 2), pool_type="max", pooling_convention="full", name="pool_v1"),
        S.LRN(x, nsize=3, alpha=0.1, name="lrn"),
        S.InstanceNorm(x, name="instance"),
        S.LayerNorm(x, name="layer_norm"),
        S.LayerNorm(x, axis=1, eps=1e-2, name="layer_norm_1"),
        S.GroupNorm(x, num_groups=2, name="group_norm"),
        *[S.L2Normalization(x, mode=mode, name=f"l2_{mode}") for mode in ("instance", "channel", "spatial")],
        S.SoftmaxActivation(S.Flatten(x), name="sm_instance"),
        S.SoftmaxActivation(x, mode="channel", name="sm_channel"),
        S.softmax(x, axis=1, temperature=2.0, name="softmax"),
        S.log_softmax(x, axis=2, name="log_softmax"),
        S.softmin(x, name="softmin"),
        S.UpSampling(x, scale=2, sample_type="nearest", name="up"),
        S.UpSampling(x, S.Variable("up_weight"), scale=2, sample_type="bilinear", num_filter=4, name="up_linear"),
        S.contrib.BilinearResize2D(x, height=5, width=20, name="resize"),
        S.contrib.BilinearResize2D(x, scale_height=2.0, scale_width=1.5, name="resize_by"),
        S.contrib.AdaptiveAvgPooling2D(x, output_size=1, name="adaptive"),
        S.Dropout(x, name="dropout"),
        S.SoftmaxOutput(S.Flatten(x), name="softmax_output"),
        S.LogisticRegressionOutput(x, S.BlockGrad(x), name="logistic"),
    ]
    save("layers", outputs, {"data": images(2, 4, 5, 4)})


def volumes():
    """Layers on [N, C, T] and [N, C, D, H, W]."""
    line, volume = S.Variable("line"), S.Variable("volume")
    outputs = [
        S.Convolution(line, kernel=(3,), num_filter=3, pad=(1,), name="conv1"),
        S.Pooling(line, kernel=(2,), stride=(2,), pool_type="avg", name="pool1"),
        S.Convolution(volume, kernel=(2, 3, 2), num_filter=3, name="conv3"),
        S.Pooling(volume, kernel=(2, 2, 2), stride=(2, 2, 2), pool_type="max", name="pool3"),
    ]
    save("volumes", outputs, {"line": images(2, 4, 10), "volume": images(2, 2, 4, 5, 6)})


def arithmetic():
    """Elementwise operators and reductions."""
    x, y = S.Variable("data"), S.Variable("other")
    positive = S.abs(x) + 0.5
    outputs = [
        x + y, x - y, x * y, x / y, S.maximum(x, y), S.minimum(x, y), positive**y, S.broadcast_mod(x, y),
        S.broadcast_add(x, S.mean(y, axis=1, keepdims=True)), S.broadcast_hypot(x, y), S.add_n(x, y, x),
        x + 2, x - 2, 2 - x, x * 3, x / 3, 3 / x, positive**1.5, 2**x, S.maximum(x, 0.1), S.minimum(x, 0.1), x % 0.7,
        x > y, x < 0.2, x >= y, x <= 0.2, x == y, x != y, S.broadcast_greater(x, y),
        *[getattr(S, name)(x) for name in ("relu", "sigmoid", "tanh", "softsign", "exp", "abs", "negative", "sign",
                                           "floor", "ceil", "erf", "sin", "cos", "square", "expm1", "round", "trunc",
                                           "hard_sigmoid", "zeros_like", "ones_like", "logical_not", "smooth_l1")],
        *[getattr(S, name)(positive) for name in ("log", "sqrt", "rsqrt", "reciprocal", "log1p", "log2", "log10")],
        S.clip(x, a_min=-0.5, a_max=0.7),
        S.sum(x), S.sum(x, axis=(1, 2)), S.mean(x, axis=1, keepdims=True), S.max(x, axis=(0, 2), exclude=True),
        S.min(x, axis=-1), S.prod(x, axis=2), S.norm(x, axis=1), S.norm(x, ord=1, axis=2, keepdims=True),
        S.argmax(x, axis=1), S.argmin(x, axis=2, keepdims=True), S.mean(x, axis=(0, 1, 2)),
    ]  # fmt: skip
    save("arithmetic", outputs, {"data": images(2, 3, 4), "other": images(2, 3, 4)[::-1].copy()})


def moving():
    """Operators that move, choose and join numbers."""
    x, rows = S.Variable("data"), S.Variable("rows")
    parts, apart = S.SliceChannel(x, num_outputs=2, axis=1), S.split(x, num_outputs=3, axis=2, squeeze_axis=True)
    shapes = [(0, -1), (-1, 6), (-2,), (0, -3, -2), (-3, -3), (0, -4, 2, -1, -2), (0, -4, -1, 2, 0, 0), (0, 0, -1)]
    outputs = [
        *[S.reshape(x, shape=shape) for shape in shapes],
        S.reshape(x, shape=(-1, 5), reverse=True), S.reshape(x, shape=(-1, 0), reverse=True),
        S.reshape_like(x, S.reshape(x, shape=(8, 15))),
        S.Flatten(x), S.transpose(x), S.transpose(x, axes=(0, 2, 3, 1)), S.SwapAxis(x, dim1=1, dim2=3),
        S.expand_dims(x, axis=1), S.squeeze(S.expand_dims(x, axis=2), axis=2), S.concat(x, x, dim=2), S.stack(x, x),
        parts[0], parts[1], apart[0], apart[2],
        S.slice(x, begin=(0, 1, None), end=(None, 3, -1)), S.slice(x, begin=(None, 3), end=(None, 0), step=(1, -2)),
        S.slice_axis(x, axis=-1, begin=1, end=None), S.slice_like(x, S.slice(x, begin=(0, 0), end=(1, 2)), axes=(0, 1)),
        S.Crop(x, h_w=(2, 3), offset=(1, 1), num_args=1), S.Crop(x, h_w=(2, 3), center_crop=True, num_args=1),
        S.reverse(x, axis=1), S.flip(x, axis=(1, 3)),
        S.Pad(x, mode="constant", pad_width=(0, 0, 0, 0, 1, 2, 0, 1), constant_value=0.5),
        S.Pad(x, mode="edge", pad_width=(0, 0, 0, 0, 1, 1, 2, 1)),
        S.Pad(x, mode="reflect", pad_width=(0, 0, 0, 0, 1, 1, 2, 1)),
        S.tile(x, reps=(1, 2, 1, 1)), S.tile(x, reps=(2, 1, 1, 1, 1)), S.tile(x, reps=(2,)),
        S.repeat(x, repeats=2, axis=1),
        S.broadcast_to(S.slice_axis(x, axis=1, begin=0, end=1), shape=(0, 4, 0, 0)),
        S.broadcast_axis(S.slice_axis(x, axis=1, begin=0, end=1), axis=1, size=3),
        S.where(x > 0, x, x * 2), S.Cast(x, dtype="float64"), S.Cast(S.Cast(x, dtype="int32"), dtype="float32"),
        S.dot(S.reshape(x, shape=(2, -1)), S.reshape(x, shape=(2, -1)), transpose_b=True),
        S.dot(x, S.ones((5, 2))), S.batch_dot(S.reshape(x, shape=(8, 3, 5)), S.reshape(x, shape=(8, 5, 3))),
        S.batch_dot(S.reshape(x, shape=(8, 3, 5)), S.reshape(x, shape=(8, 3, 5)), transpose_b=True),
        S.depth_to_space(x, block_size=2), S.space_to_depth(S.Crop(x, h_w=(2, 4), num_args=1), block_size=2),
        S.contrib.div_sqrt_dim(x), S.identity(x), S.BlockGrad(x), S.arange(0, 5, 2, repeat=2),
        S.Embedding(rows, input_dim=6, output_dim=3, name="embedding"), S.take(x, rows, axis=1),
        S.take(x, rows, axis=2, mode="wrap"), S.one_hot(rows, depth=6, on_value=2.0),
    ]  # fmt: skip
    numbers = np.arange(-60, 60).reshape(2, 4, 3, 5).astype("float32")
    save("moving", outputs, {"data": numbers, "rows": np.array([[0, 5, 2], [3, 1, 4]], "float32")})


def recurrent():
    """Recurrent layers of each kind."""
    x, outputs = S.Variable("data"), []
    for mode, layers_, both in (
        ("lstm", 1, False),
        ("lstm", 2, True),
        ("gru", 2, True),
        ("rnn_tanh", 1, True),
        ("rnn_relu", 2, False),
    ):
        name = f"{mode}_{layers_}"
        state = S.zeros((layers_ * (1 + both), 2, 3))
        cell = {"state_cell": S.zeros((layers_ * (1 + both), 2, 3))} if mode == "lstm" else {}
        made = S.RNN(x, S.Variable(f"{name}_parameters"), state, state_size=3, num_layers=layers_, mode=mode,
                     bidirectional=both, state_outputs=True, name=name, **cell)  # fmt: skip
        outputs += list(made)
    save("recurrent", outputs, {"data": images(5, 2, 4)})


def plain_network():
    """Return a network of plain operators; its convolutions stay float.

    oneDNN's unfused convolution reads only uint8, and then takes thresholds for int8: its results are 255 / 127 times
    as large as they should be.
    """
    data = S.Variable("data")
    one = S.Convolution(data, kernel=(3, 3), num_filter=8, pad=(1, 1), no_bias=True, name="conv0")
    two = S.Convolution(data, kernel=(1, 1), num_filter=8, name="conv1")
    x = S.BatchNorm(S.elemwise_add(one, two, name="plus"), fix_gamma=False, name="bn0")
    x = S.Activation(x, act_type="relu", name="relu0")
    pool = S.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max", name="pool0")
    other = S.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="avg", name="pool1")
    return finished(S.elemwise_add(pool, other, name="sum"), pool)


def fused_network():
    """Return a network with what oneDNN fuses: BatchNorm, activations, a sum; groups and biases."""
    x = S.Convolution(S.Variable("data"), kernel=(3, 3), num_filter=8, pad=(1, 1), name="conv0")
    x = S.Activation(S.BatchNorm(x, fix_gamma=False, name="bn0"), act_type="relu", name="relu0")
    pool = S.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max", name="pool0")
    x = S.Convolution(pool, kernel=(3, 3), pad=(1, 1), num_filter=8, num_group=8, name="conv1")
    x = S.Activation(S.Convolution(x, kernel=(1, 1), num_filter=8, no_bias=True, name="conv2"), act_type="relu")
    x = S.Convolution(x, kernel=(1, 1), num_filter=8, no_bias=True, name="conv3")
    # The summand is unsigned, as the sum is: oneDNN writes sums in the summand's type.
    return finished(S.elemwise_add(x, pool, name="sum"), pool)


def finished(x, pool):
    """Return the common end: an activation, a concatenation, a mean and a classifier."""
    x = S.Activation(x, act_type="relu", name="relu1")
    x = S.Pooling(S.concat(x, pool, dim=1, name="cat"), global_pool=True, pool_type="avg", kernel=(2, 2), name="mean")
    x = S.FullyConnected(S.Flatten(x, name="flat"), num_hidden=5, name="fc")
    return S.SoftmaxOutput(x, name="softmax")


def calibrated(symbol, ranges):
    """Return a network with calibrated thresholds in the nodes that have none, from the float network's values."""
    graph = json.loads(symbol.tojson())
    for node in graph["nodes"]:
        name = node["name"].replace("requantize_", "").replace("quantized_", "")
        if node["op"] in ("_contrib_requantize", "_contrib_quantized_batch_norm"):
            low, high = ranges[f"{name}_output"]
            node["attrs"] = {**node.get("attrs", {}), "min_calib_range": str(low), "max_calib_range": str(high)}
    return S.load_json(json.dumps(graph))


def output_of(name):
    """Return what MXNet calls a node's first output: with a number behind those that quantize."""
    return f"{name}_output" + ("0" if name.endswith("_quantize") or name.startswith("requantize") else "")


PLAIN_OUTPUTS = (
    "conv0_output_quantize", "conv1_output_quantize", "requantize_plus", "quantized_bn0", "quantized_pool0",
    "quantized_pool1", "requantize_sum", "quantized_cat", "quantized_mean", "requantize_fc", "softmax",
)  # fmt: skip
FUSED_OUTPUTS = (
    "data_quantize", "quantized_sg_mkldnn_conv_bn_act_0", "quantized_pool0", "quantized_sg_mkldnn_conv_1",
    "quantized_sg_mkldnn_conv_act_2", "quantized_cat", "quantized_mean", "quantized_sg_mkldnn_conv_add_act_3",
    "softmax",
)  # fmt: skip


def quantized():
    """Networks quantized by MXNet: plain operators, and those that oneDNN fuses."""
    for fused, kind in ((False, "int8"), (True, "auto"), (True, "int8")):
        symbol = fused_network() if fused else plain_network()
        data = images(4, 4, 6, 6) if kind == "int8" or not fused else np.abs(images(4, 4, 6, 6))
        iterator = mx.io.NDArrayIter(data, np.zeros(4), batch_size=4, label_name="softmax_label")
        _, arrays, states = save("float_network", symbol, {"data": data})
        inner = symbol.get_internals()
        internals = S.Group([inner[name] for name in inner.list_outputs() if name.endswith("_output")])
        labels = {"softmax_label": mx.nd.zeros((4,))}
        executor = internals.bind(mx.cpu(), {"data": mx.nd.array(data), **arrays, **labels}, aux_states=states)
        values = dict(zip(internals.list_outputs(), executor.forward(is_train=False), strict=True))
        ranges = {key: (float(one.min().asscalar()), float(one.max().asscalar())) for key, one in values.items()}
        source = symbol.get_backend_symbol("MKLDNN_QUANTIZE") if fused else symbol
        made, arguments, auxiliary = quantize_model(
            source, arrays, states, data_names=("data",), label_names=("softmax_label",), ctx=mx.cpu(),
            calib_mode="naive", quantize_mode="smart" if fused else "full",
            excluded_sym_names=[] if fused else ["conv0", "conv1"], calib_data=iterator, num_calib_examples=4,
            quantized_dtype=kind,
        )  # fmt: skip
        made = made.get_backend_symbol("MKLDNN_QUANTIZE") if fused else calibrated(made, ranges)
        inner = made.get_internals()
        wanted = [inner[output_of(title)] for title in (FUSED_OUTPUTS if fused else PLAIN_OUTPUTS)]
        run(
            S.Group(wanted),
            f"{'fused' if fused else 'plain'}_{kind}",
            {"data": mx.nd.array(data)},
            arguments,
            auxiliary,
        )


if __name__ == "__main__":
    for make in (layers, volumes, arithmetic, moving, recurrent, quantized):
        print(make.__name__)
        make()
