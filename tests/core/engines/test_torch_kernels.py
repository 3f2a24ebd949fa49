"""Operators on levels are PyTorch's, integer for integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import UNBOUNDED
from narrowgauge.core.engines.rescale import FloatRescale
from narrowgauge.errors import PlanError
from tests.core.engines.torch_engines import FAMILIES, Array, Scales, encoding, quantized, use, vectors

ENGINES = ["fbgemm", "qnnpack", "onednn", "x86"]
CODES = np.arange(256, dtype=np.uint8)
WHOLE = np.tile(CODES, 4)  # of vectors of 64 levels; see the rules' docstring


@pytest.fixture(autouse=True)
def _on_x86() -> None:
    if not vectors():
        pytest.skip("the rules of whole vectors are those of x86-64 with AVX2")


def table_of(found: Any) -> Array:
    return found.int_repr().numpy()[:256]


FUNCTIONS: dict[str, Any] = {
    "Sigmoid": lambda torch, tensor, target, a: torch.ops.quantized.sigmoid(tensor, *target),
    "Tanh": lambda torch, tensor, target, a: torch.tanh(tensor),
    "HardSwish": lambda torch, tensor, target, a: torch.ops.quantized.hardswish(tensor, *target),
    "HardSigmoid": lambda torch, tensor, target, a: torch.nn.functional.hardsigmoid(tensor),
    "LeakyRelu": lambda torch, tensor, target, a: torch.ops.quantized.leaky_relu(tensor, a["alpha"], False, *target),
    "Elu": lambda torch, tensor, target, a: torch.ops.quantized.elu(tensor, *target, a["alpha"]),
    "Gelu": lambda torch, tensor, target, a: torch.nn.functional.gelu(tensor),
    "Requantize": lambda torch, tensor, target, a: torch.quantize_per_tensor(
        tensor.dequantize(), *target, torch.quint8
    ),
}

ATTRIBUTES = {"LeakyRelu": {"alpha": 0.1}, "Elu": {"alpha": 0.25}, "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5}}


def output_of(operator: str, engine: str, first: Encoding, scales: Scales) -> Encoding:
    if operator == "Gelu":
        return first
    if operator == "Tanh":
        return encoding(2 / 256, 128)
    if operator == "HardSigmoid" or (operator == "Sigmoid" and engine == "qnnpack"):
        return encoding(1 / 256, 0)
    return encoding(scales.one(), scales.rng.integers(0, 256))


@pytest.mark.parametrize("operator", FUNCTIONS)
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_functions(engine: str, operator: str) -> None:
    wrong = 0
    with use(engine) as torch:
        for trial in range(45):
            scales = Scales(FAMILIES[trial % 3], seed=trial)
            held = encoding(scales.one(), scales.rng.integers(0, 256))
            output, attributes = output_of(operator, engine, held, scales), ATTRIBUTES.get(operator, {})
            target = (float(output.scale), int(output.zero_point))
            found = table_of(FUNCTIONS[operator](torch, quantized(WHOLE, held), target, attributes))
            wrong += int((KERNELS[engine].unary(operator, attributes, held, output, UNBOUNDED) != found).sum())
    assert wrong == 0


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_clips(engine: str) -> None:
    """Bounds in the middle of two levels, where the zero point decides the tie."""
    wrong = 0
    with use(engine) as torch:
        for trial in range(60):
            scales = Scales(FAMILIES[trial % 3], seed=trial)
            held = encoding(scales.one(), scales.rng.integers(0, 256))
            low, high = (
                float(np.float32(step + 0.5) * held.scale)
                for step in (scales.rng.integers(-40, 20), scales.rng.integers(21, 60))
            )
            found = table_of(torch.clamp(quantized(WHOLE, held), low, high))
            wrong += int((KERNELS[engine].unary("Clip", {}, held, held, (low, high)) != found).sum())
            relu = table_of(torch.relu(quantized(WHOLE, held)))
            wrong += int((KERNELS[engine].unary("Relu", {}, held, held, UNBOUNDED) != relu).sum())
    assert wrong == 0


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("operator", ["Add", "Mul"])
@pytest.mark.parametrize("engine", ENGINES)
def test_pairs(engine: str, operator: str, *, relu: bool) -> None:
    name = operator.lower() + ("_relu" if relu else "")
    first, second = (part.reshape(-1) for part in np.meshgrid(CODES, CODES, indexing="ij"))
    wrong = 0
    with use(engine) as torch:
        for trial in range(12):
            scales = Scales(FAMILIES[trial % 3], seed=trial)
            held = [encoding(scales.one() * (1 + place // 2), scales.rng.integers(0, 255)) for place in range(3)]
            target = (float(held[2].scale), int(held[2].zero_point))
            found = getattr(torch.ops.quantized, name)(quantized(first, held[0]), quantized(second, held[1]), *target)
            bounds = (0.0, np.inf) if relu else UNBOUNDED
            ours = KERNELS[engine].binary(operator, held[0], held[1], held[2], bounds)
            wrong += int((ours.reshape(-1) != found.int_repr().numpy()).sum())
    assert wrong == 0


def test_pairs_in_integers_are_the_tables() -> None:
    held = [encoding(0.02, 3), encoding(0.031, 250), encoding(0.04, 77)]
    for engine, operator in (("qnnpack", "Add"), ("qnnpack", "Mul"), ("fbgemm", "Mul")):
        kernels = KERNELS[engine]
        form = kernels.pair(operator, *held, UNBOUNDED)
        np.testing.assert_array_equal(form.table(), kernels.binary(operator, *held, UNBOUNDED))
    with pytest.raises(PlanError, match="in integers"):
        KERNELS["fbgemm"].pair("Add", *held, UNBOUNDED)


@pytest.mark.parametrize("count", [1, 4, 49, 64, 100, 3136])
@pytest.mark.parametrize("engine", ENGINES)
def test_means(engine: str, count: int) -> None:
    """Sums in the middle of two levels, and next to it."""
    wrong = 0
    with use(engine) as torch:
        for trial in range(6):
            scales = Scales(FAMILIES[trial % 3], seed=trial)
            rng = scales.rng
            held = encoding(scales.one(), rng.integers(0, 256))
            total = rng.integers(0, 255, 192) * count + count // 2 + rng.integers(-1, 2, 192)
            total = np.clip(total, 0, 255 * count)
            base, rest = np.divmod(total, count)
            levels = (base[:, None] + (np.arange(count) < rest[:, None])).astype(np.uint8)
            images = levels.reshape(1, 192, 1, count)
            form = KERNELS[engine].mean(held, held, count)
            found = torch.nn.functional.adaptive_avg_pool2d(quantized(images, held), 1).int_repr().numpy()
            sums = levels.astype(np.int64).sum(axis=1)
            wrong += int((form.rescale.levels(sums + form.bias) != found.reshape(-1)).sum())
            if count > 1:
                found = torch.nn.functional.avg_pool2d(quantized(images, held), (1, count)).int_repr().numpy()
                pooled = KERNELS[engine].average_pool(held, held, count)
                wrong += int((pooled.levels(sums) != found.reshape(-1)).sum())
    assert wrong == 0


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_concatenation(engine: str) -> None:
    wrong = 0
    with use(engine) as torch:
        for trial in range(12):
            scales = Scales(FAMILIES[trial % 3], seed=trial)
            held, other, output = (encoding(scales.one(), scales.rng.integers(0, 256)) for _ in range(3))
            target = (float(output.scale), int(output.zero_point))
            found = torch.ops.quantized.cat([quantized(CODES, held), quantized(CODES, other)], 0, *target)
            ours = [KERNELS[engine].concat(one, output) for one in (held, other)]
            wrong += int((np.concatenate(ours) != found.int_repr().numpy()).sum())
    assert wrong == 0


def test_what_there_is_no_kernel_for_is_refused() -> None:
    one, other = encoding(0.02, 3), encoding(0.5, 7)
    kernels, qnnpack = KERNELS["fbgemm"], KERNELS["qnnpack"]
    with pytest.raises(PlanError, match="got Softmax"):
        kernels.softmax(one, one, 10)
    with pytest.raises(PlanError, match="got Erf"):
        kernels.unary("Erf", {}, one, other, UNBOUNDED)
    with pytest.raises(PlanError, match="got Sub"):
        kernels.binary("Sub", one, one, one, UNBOUNDED)
    with pytest.raises(PlanError, match="uint8 with one scale"):
        kernels.binary("Add", encoding(0.1, 0, "int8"), one, one, UNBOUNDED)
    with pytest.raises(PlanError, match="keeps, got another"):
        kernels.mean(one, other, 4)
    with pytest.raises(PlanError, match="keeps, got another"):
        kernels.unary("Gelu", {}, one, other, UNBOUNDED)
    with pytest.raises(PlanError, match=r"0\.0078125 and zero point 128"):
        kernels.unary("Tanh", {}, one, other, UNBOUNDED)
    with pytest.raises(PlanError, match=r"0\.00390625 and zero point 0"):
        qnnpack.unary("Sigmoid", {}, one, other, UNBOUNDED)
    with pytest.raises(PlanError, match="slope 1/6"):
        kernels.unary("HardSigmoid", {}, one, encoding(1 / 256), UNBOUNDED)
    with pytest.raises(PlanError, match="QNNPACK's own limits"):
        qnnpack.binary("Add", one, encoding(2.0**-20), encoding(1.0), UNBOUNDED)


def test_bounds_and_narrow_types_cut() -> None:
    held = encoding(0.1, 10, "uint7")
    table = KERNELS["fbgemm"].unary("Requantize", {}, encoding(0.1, 10), held, (0.0, 6.0))
    assert (table.min(), table.max()) == (10, 70)
    wide = KERNELS["fbgemm"].binary("Mul", held, held, held, UNBOUNDED)
    assert wide.shape == (256, 256)
    assert wide.max() == 127
    assert isinstance(KERNELS["qnnpack"].mean(held, held, 4).rescale, FloatRescale)
