"""Libraries compiled by TVM: every kernel against numpy, small networks against ONNX Runtime's integer operators."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tvm = pytest.importorskip("tvm", reason="needs TVM: pip install 'narrowgauge[tvm]'")

from narrowgauge.core.plan import Plan  # noqa: E402 - behind what skips the file
from narrowgauge.errors import MissingDependencyError, OutputError, TargetError  # noqa: E402
from narrowgauge.exporters.formats import FORMATS, Export  # noqa: E402
from narrowgauge.exporters.tvm import checking  # noqa: E402
from narrowgauge.exporters.tvm.convolution import (  # noqa: E402
    Convolution,
    Rounding,
    Window,
    convolution_kernel,
    packed_weights,
)
from narrowgauge.exporters.tvm.image import Image, whole  # noqa: E402
from narrowgauge.exporters.tvm.network import network_module  # noqa: E402
from narrowgauge.exporters.tvm.preparing import in_integers  # noqa: E402
from narrowgauge.exporters.tvm.processor import (  # noqa: E402
    ANY,
    AVX2,
    VNNI_256,
    VNNI_512,
    Processor,
    Product,
    this_processor,
)
from narrowgauge.graph.engine import open_session  # noqa: E402
from narrowgauge.importers.onnx import load  # noqa: E402
from narrowgauge.lowering.qdq import lower_to_qdq  # noqa: E402
from narrowgauge.planning.fill import fill  # noqa: E402
from narrowgauge.planning.place import place  # noqa: E402
from narrowgauge.recipe import PRESETS, choices, narrowed  # noqa: E402
from narrowgauge.runtimes.tvm import open_program  # noqa: E402
from narrowgauge.targets.registry import load_target  # noqa: E402
from tests.exporters.making import export  # noqa: E402
from tests.planning.networks import network, normal, seen  # noqa: E402

_FEATURES = {VNNI_512: "avx512vnni", VNNI_256: "avxvnni", AVX2: "avx2", ANY: ""}


@pytest.fixture(scope="module")
def processor() -> Processor:
    return this_processor()


# --- kernels against numpy ------------------------------------------------------------------------------------------


def compiled(function: Any, processor: Processor) -> Any:
    name = function.attrs["global_symbol"]
    return tvm.compile(tvm.IRModule({name: function}), target=processor.target)[name]


def expected_sums(levels: np.ndarray, zero_point: int, weights: np.ndarray, window: Window, groups: int,
                  size: tuple[int, int]) -> np.ndarray:  # fmt: skip
    """A convolution as its definition has it, in int64: `[batch, channels, height, width]` to the same."""
    batch, _, height, width = levels.shape
    outputs, inputs, rows, columns = weights.shape
    room = 16
    padded = np.zeros((batch, levels.shape[1], height + 2 * room, width + 2 * room), np.int64)
    padded[:, :, room : room + height, room : room + width] = levels.astype(np.int64) - zero_point
    sums = np.zeros((batch, outputs, *size), np.int64)
    for down in range(rows):
        for right in range(columns):
            y = room - window.start[0] + down * window.dilations[0] + np.arange(size[0]) * window.strides[0]
            x = room - window.start[1] + right * window.dilations[1] + np.arange(size[1]) * window.strides[1]
            taps = padded[:, :, y[:, None], x[None, :]]
            for output in range(outputs):
                first = output // (outputs // groups) * inputs
                sums[:, output] += np.tensordot(
                    weights[output, :, down, right].astype(np.int64), taps[:, first : first + inputs], (0, 1)
                )
    return sums


shapes = st.sampled_from([
    # channels, outputs, groups, kernel, strides, dilations, padding
    (3, 8, 1, (3, 3), (2, 2), (1, 1), (1, 1)),
    (24, 40, 1, (3, 2), (1, 1), (2, 1), (1, 1)),
    (24, 36, 6, (3, 3), (1, 2), (1, 1), (1, 0)),
    (64, 64, 2, (1, 1), (1, 1), (1, 1), (0, 0)),
    (8, 16, 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    (20, 20, 20, (3, 3), (2, 2), (1, 1), (1, 1)),
    (3, 3, 3, (1, 3), (1, 1), (1, 2), (0, 2)),
    (50, 37, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
])  # fmt: skip


@settings(max_examples=12)
@given(
    shape=shapes, product=st.sampled_from(list(_FEATURES)), by=st.sampled_from(["factor", "shift", "float"]),
    halo=st.sampled_from([(0, 0, 0, 0), (1, 2, 1, 0)]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_sums_are_exact_and_roundings_half_to_even(
    processor: Processor, shape: Any, product: Product, by: Any, halo: Any, seed: int
) -> None:
    if _FEATURES[product] and _FEATURES[product] not in processor.features:
        return
    channels, outputs, groups, kernel, strides, dilations, padding = shape
    generator = np.random.default_rng(seed)
    zero_point = int(generator.integers(0, 256))
    levels = generator.integers(0, 256, (2, channels, 7, 9)).astype(np.uint8)
    weights = generator.integers(-128, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    bias = generator.integers(-(2**12), 2**12, outputs)
    window = Window(kernel=kernel, strides=strides, dilations=dilations, start=padding)
    size = tuple(
        (extent + 2 * pad - (taps - 1) * hole - 1) // step + 1
        for extent, pad, taps, hole, step in zip((7, 9), padding, kernel, dilations, strides, strict=True)
    )
    source = replace(whole((2, channels, 7, 9), last=False), halo=(*padding, *padding))
    depth = source.depth if groups == channels == outputs else -(-outputs // 16) * 16
    halo = (0, 0, 0, 0) if by == "float" else halo
    result = Image(batch=2, channels=outputs, height=size[0], width=size[1], depth=depth, halo=halo)
    convolution = Convolution(
        source=source, result=result, window=window, groups=groups,
        rounding=Rounding(by=by, zero_point=7, low=3, high=250),
    )  # fmt: skip
    memory = generator.integers(0, 256, (2, 7 + 2 * padding[0], 9 + 2 * padding[1], source.depth)).astype(np.uint8)
    memory[..., :channels] = zero_point
    memory[:, padding[0] : padding[0] + 7, padding[1] : padding[1] + 9, :channels] = levels.transpose(0, 2, 3, 1)
    folded = np.zeros(depth, np.int32)
    folded[:outputs] = bias - zero_point * weights.astype(np.int64).sum(axis=(1, 2, 3))
    factors = np.ones(depth, np.int32) if by == "shift" else np.zeros(depth, np.float32)
    factors[:outputs] = generator.integers(5, 12, outputs) if by == "shift" else generator.uniform(1e-4, 1e-2, outputs)
    found = tvm.runtime.tensor(np.zeros(result.size, np.float32 if by == "float" else np.uint8))
    arrays = (memory.reshape(-1), packed_weights(convolution, product, weights), folded, factors)
    kernel_function = compiled(convolution_kernel(convolution, product), processor)
    kernel_function(*map(tvm.runtime.tensor, arrays), found)

    sums = expected_sums(levels, zero_point, weights, window, groups, size) + bias[:, None, None]
    factor = (2.0 ** -factors[:outputs].astype(np.float64) if by == "shift" else factors[:outputs]).astype(np.float32)
    real = sums.astype(np.float32) * factor[:, None, None]
    wanted = real if by == "float" else np.clip(np.rint(real) + 7, 3, 250)
    all_found = found.numpy().reshape(2, size[0] + halo[0] + halo[2], size[1] + halo[1] + halo[3], depth)
    inner = all_found[:, halo[0] : halo[0] + size[0], halo[1] : halo[1] + size[1], :outputs]
    np.testing.assert_array_equal(inner.transpose(0, 3, 1, 2), wanted.astype(inner.dtype))
    around = np.ones(all_found.shape[1:3], bool)
    around[halo[0] : halo[0] + size[0], halo[1] : halo[1] + size[1]] = False
    assert (all_found[:, around][..., :outputs] == 7).all()


def test_products_of_eight_bits_are_the_processors_own(processor: Processor) -> None:
    """The compiled code multiplies 8-bit operands into 32-bit accumulators, and no float product adds up a sum."""
    if processor.product is not VNNI_512:
        pytest.skip("needs a processor with AVX512-VNNI")
    source, result = whole((1, 64, 8, 8), last=False), whole((1, 64, 8, 8), last=False)
    convolution = Convolution(
        source=source, result=result, window=Window(), groups=1, rounding=Rounding(by="shift")
    )  # fmt: skip
    function = convolution_kernel(convolution, processor.product)
    module = tvm.compile(tvm.IRModule({"convolution": function}), target=processor.target)
    code = module.mod.inspect_source("asm")
    assert "vpdpbusd" in code
    assert "vfmadd" not in code
    assert "vcvtdq2ps" not in code  # by shifts: there is no float number at all


# --- networks against ONNX Runtime ----------------------------------------------------------------------------------


def images(*shape: int) -> np.ndarray:
    return normal(8, *shape, seed=1)


W = {
    "w": normal(8, 8, 3, 3), "v": normal(8, 8, 1, 1), "u": normal(5, 8, 1, 1), "t": normal(6, 13, 3, 3),
    "b": normal(8), "g": normal(8, 4), "c": normal(4), "lo": np.float32(-0.5), "hi": np.float32(2),
}  # fmt: skip
IMAGE = "float[n, 8, 11, 12] x"
NETWORKS: dict[str, tuple[str, str, str, dict[str, np.ndarray], tuple[int, ...]]] = {
    "padded": (IMAGE, "float[n, 8, p, q] y", 'a = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w, b) '
               'y = Clip(a, lo, hi)', {}, (8, 11, 12)),
    "one dimension": ("float[n, 8, 30] x", "float[n, 8, 15] y", "a = Conv<pads = [2, 2], strides = [2]>(x, k, b) "
                      "r = Relu(a) y = Conv(r, l)", {"k": normal(8, 8, 5), "l": normal(8, 8, 1)}, (8, 30)),
    "three dimensions": ("float[n, 2, 6, 6, 6] x", "float[n, 3, 4, 4, 4] y", "y = Conv(x, k)",
                         {"k": normal(3, 2, 3, 3, 3)}, (2, 6, 6, 6)),
    "residual": (IMAGE, "float[n, 8, 11, 12] y", "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a) "
                 "d = Conv<pads = [1, 1, 1, 1]>(r, w) s = Add(d, r) e = Relu(s) y = Conv(e, v)", {}, (8, 11, 12)),
    "gates": (IMAGE, "float[n, 8, 11, 12] y", "a = Conv(x, v) d = Conv(a, v) m = Mul(a, d) p = GlobalAveragePool(m) "
              "q = Conv(p, v) s = Sigmoid(q) o = Mul(m, s) y = Conv(o, v)", {}, (8, 11, 12)),
    "joined": (IMAGE, "float[n, 6, 11, 12] y", "a = Conv(x, v) r = Relu(a) d = Conv(x, u) e = Concat<axis = 1>(r, d) "
               "y = Conv<pads = [1, 1, 1, 1]>(e, t)", {}, (8, 11, 12)),
    "pooled": (IMAGE, "float[n, 4] y", "a = Conv(x, v) m = MaxPool<kernel_shape = [3, 3], strides = [2, 2], "
               "pads = [1, 1, 1, 1]>(a) p = AveragePool<kernel_shape = [3, 2], pads = [1, 0, 1, 1]>(m) d = Conv(p, v) "
               "e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, g, c)", {}, (8, 11, 12)),
    "moved": (IMAGE, "float[n, 4, p, q] y, float[n, 8, 11, 12] a", "a = Conv(x, v) o = Transpose<perm = [0, 3, 2, 1]>"
              "(a) h, i = Split<axis = 3, num_outputs = 2>(o) s = Add(h, i) r = Transpose<perm = [0, 3, 2, 1]>(s) "
              "y = Conv(r, k)", {"k": normal(4, 4, 1, 1)}, (8, 11, 12)),
    "attention": ("float[n, 9, 16] x", "float[n, 9, 16] y", "q = MatMul(x, k) m = MatMul(x, l) "
                  "o = Transpose<perm = [0, 2, 1]>(m) s = MatMul(q, o) p = Softmax<axis = -1>(s) z = MatMul(p, q) "
                  "e = LayerNormalization<axis = -1>(z, h) y = MatMul(e, k)",
                  {"k": normal(16, 16), "l": normal(16, 16), "h": normal(16)}, (9, 16)),
    "narrow": ("float[n, 3, 6, 6] x", "float[n, 3, 6, 6] y", "a = Conv<group = 3>(x, k) d = Conv(a, l) y = Add(a, d)",
               {"k": normal(3, 1, 1, 1), "l": normal(3, 3, 1, 1)}, (3, 6, 6)),
    "fixed batch, shared weights": ("float[8, 8, 6, 6] x", "float[8, 8, 6, 6] y", "a = Conv<pads = [1, 1, 1, 1]>(x, w) "
                                    "y = Conv<pads = [1, 1, 1, 1]>(a, w)", {}, (8, 6, 6)),
    "a branch": ("float[n, 8] x", "float[n, 4] y", "a = Gemm(x, g, c) s = ReduceSum<keepdims = 0>(a) "
                 "d = Greater(s, lo) y = If(d) <then_branch = one() => (float[n, 4] p) {p = Gemm(x, g, c)}, "
                 "else_branch = two() => (float[n, 4] q) {q = Neg(a)}>", {}, (8,)),
}  # fmt: skip


def run_compiled(model: ir.Model, feed: Mapping[str, np.ndarray], processor: Processor) -> list[np.ndarray]:
    module = network_module(model, processor)
    library = tvm.compile(tvm.relax.get_pipeline("zero")(module), target=processor.target)
    machine = tvm.relax.VirtualMachine(library, tvm.cpu())
    arrays = [tvm.runtime.tensor(feed[str(value.name)]) for value in model.graph.inputs]
    return [one.numpy() for one in machine["main"](*arrays)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_integers_as_onnx_runtime(name: str, processor: Processor) -> None:
    inputs, outputs, body, own, shape = NETWORKS[name]
    used = {key: value for key, value in {**W, **own}.items() if f"{key})" in body or f"{key}," in body}
    model = load(network(inputs, outputs, body, **used)).model
    asked = export(model, images(*shape), "tvm")
    integers, notes = in_integers(asked.simulated)
    assert bool(notes) == (name == "three dimensions")
    rows = 8 if name.startswith("fixed") else 1
    feed = {"x": images(*shape)[:rows]}
    found = run_compiled(integers, feed, processor)
    for reference in (open_session(integers, threads=1), open_session(asked.simulated, threads=1, simulate=True)):
        for one, other in zip(reference.run(None, feed), found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())


def test_scales_of_powers_of_two_make_right_shifts(processor: Processor) -> None:
    """The recipe of TVM's former automatic quantization: layers compute without a float number."""
    recipe = PRESETS["tvm-global-scale"]
    target = narrowed(load_target("tvm"), recipe)
    body = "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a) y = Conv(r, v)"
    model = load(network(IMAGE, "float[n, 8, 11, 12] y", body, w=W["w"] / 8, b=W["b"], v=W["v"])).model
    asked, _ = choices(recipe, model)
    plan = fill(model, place(model, target, asked), seen(model, images(8, 11, 12)), target, asked)
    integers, _ = in_integers(lower_to_qdq(model, plan))
    module = network_module(integers, processor)
    kernels = [str(function) for name, function in module.functions.items() if "convolution" in name.name_hint]
    assert kernels
    assert all("float32" not in text for text in kernels)
    feed = {"x": images(8, 11, 12)[:1]}
    (found,) = run_compiled(integers, feed, processor)
    np.testing.assert_array_equal(found, open_session(integers, threads=1).run(None, feed)[0])


# --- files ----------------------------------------------------------------------------------------------------------


def test_what_is_written_reads_back_and_runs(tmp_path: Path) -> None:
    inputs, outputs, body, _, shape = NETWORKS["pooled"]
    model = load(network(inputs, outputs, body, v=W["v"], g=W["g"], c=W["c"])).model
    asked = export(model, images(*shape), "tvm")
    done = FORMATS["tvm"].write(asked, tmp_path)
    assert done.runnable == tmp_path / "model.tvm.so"
    assert {path.name for path in tmp_path.iterdir()} == {"model.tvm.so", "model.tvm.json"}
    assert "one sample at a time" in done.notes[0]
    assert "100.00 %" in done.notes[-1]
    program = open_program(tmp_path / "model.tvm.so", threads=1)
    assert [(spec.name, spec.shape) for spec in program.inputs] == [("x", (1, 8, 11, 12))]
    feed = {"x": images(*shape)[:1]}
    wanted = open_session(asked.simulated, threads=1, simulate=True).run(None, feed)[0]
    np.testing.assert_allclose(program.run(feed)["y"], wanted, rtol=1e-5)
    record = json.loads((tmp_path / "model.tvm.json").read_text())
    assert record["outputs"] == ["y"]


def test_operators_that_tvm_does_not_know_are_named(tmp_path: Path) -> None:
    body = "a = Gemm(x, g, c) r = RandomUniformLike(a) y = Add(a, r)"
    model = network("float[n, 8] x", "float[n, 4] y", body, g=W["g"], c=W["c"])
    asked = Export(
        network=model, plan=Plan(target="tvm", encodings={}), target=load_target("tvm"), simulated=model
    )  # fmt: skip
    with pytest.raises(TargetError, match=r"RandomUniformLike"):
        FORMATS["tvm"].write(asked, tmp_path)
    assert not list(tmp_path.iterdir())


def test_open_shapes_are_refused() -> None:
    model = network("float[n, 8, h, w] x", "float[n, 8, h, w] y", "y = Conv(x, v)", v=W["v"])
    with pytest.raises(TargetError, match=r"axis 2 of input 'x' is open \(h\)"):
        in_integers(model)


def test_a_library_that_computes_something_else_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    model = load(network("float[n, 8] x", "float[n, 4] y", "y = Gemm(x, g, c)", g=W["g"], c=W["c"])).model
    asked = export(model, images(8), "tvm")
    integers, _ = in_integers(asked.simulated)
    program = type("Wrong", (), {"run": staticmethod(lambda feed: {"y": np.zeros((1, 4), np.float32)})})
    monkeypatch.setattr(checking, "open_program", lambda path: program)
    with pytest.raises(OutputError, match="computes something else than the simulation"):
        checking.compare(tmp_path / "model.tvm.so", integers, asked)


def test_without_a_compiler_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm.support import cc

    monkeypatch.setattr(cc, "get_cc", lambda: None)
    model = load(network("float[n, 8] x", "float[n, 4] y", "y = Gemm(x, g, c)", g=W["g"], c=W["c"])).model
    with pytest.raises(MissingDependencyError, match=r"takes a C\+\+ compiler.*install gcc or clang"):
        FORMATS["tvm"].write(export(model, images(8), "tvm"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_tvm_says_to_itself_stays_off_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Its C++ warns of its own Gather, and of a module that was given up halfway."""
    model = load(network("float[n, 8] x, int64[n] i", "float[n, 4] y, float[n, p] z", "a = Gemm(x, g, c) y = Relu(a) "
                         "z = Gather<axis = 1>(a, i)", g=W["g"], c=W["c"])).model  # fmt: skip
    FORMATS["tvm"].write(export(model, {"x": images(8), "i": np.zeros(8, np.int64)}, "tvm"), tmp_path)
    refused = network("float[n, 4] x", "float[n, 4] y", "a = Relu(x) y = Mul(a, k)", k=normal(3))
    with pytest.raises(TargetError, match=r"could not import Mul .*: In relax\.multiply, .*not broadcastable"):
        network_module(in_integers(refused)[0], this_processor())
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.slow
def test_a_real_network_answers_with_the_same_integers(zoo: Path, tmp_path: Path) -> None:
    """ResNet20 of the zoo, beside ONNX Runtime's integer operators."""
    model = load(zoo / "models" / "cifar_resnet" / "resnet20.onnx").model
    asked = export(model, normal(8, 3, 32, 32), "tvm")
    done = FORMATS["tvm"].write(asked, tmp_path)
    assert "100.00 %" in done.notes[-1]
    float_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    assert (tmp_path / "model.tvm.so").stat().st_size < float_bytes / 2
