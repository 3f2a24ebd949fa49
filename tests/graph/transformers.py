"""Small transformers as ONNX text, one function for each way to arrange a block; numbers are random."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tests.planning.networks import network, normal

SIZE, TOKENS, HEADS, UNITS = 16, 4, 2, 32


class Writer:
    """Collects nodes and weights; every value gets a number and nothing more for a name, as careless exporters do."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {
            "apart": np.array([0, TOKENS, HEADS, SIZE // HEADS], np.int64),
            "joined": np.array([0, TOKENS, SIZE], np.int64),
            "factor": np.array(0.35, np.float32),
            "gain": np.ones(SIZE, np.float32),
            "offset": np.zeros(SIZE, np.float32),
        }

    def value(self, text: str) -> str:
        """Add a node and return the value that it writes."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = normal(*shape, seed=len(self.weights)) / 4
        return name

    def linear(self, value: str, inputs: int, outputs: int) -> str:
        product = self.value(f"MatMul({value}, {self.weight(inputs, outputs)})")
        return self.value(f"Add({product}, {self.weight(outputs)})")

    def norm(self, value: str) -> str:
        return self.value(f"LayerNormalization<axis = -1>({value}, gain, offset)")

    def attention(self, value: str, memory: str = "", mask: str = "") -> str:
        """Three layers for q, k and v, as BERT has them; k and v of `memory`."""
        q, k, v = (self.linear(one, SIZE, SIZE) for one in (value, memory or value, memory or value))
        q, k, v = (self.value(f"Reshape({one}, apart)") for one in (q, k, v))
        q, v = (self.value(f"Transpose<perm = [0, 2, 1, 3]>({one})") for one in (q, v))
        k = self.value(f"Transpose<perm = [0, 2, 3, 1]>({k})")
        scores = self.value(f"Mul({self.value(f'MatMul({q}, {k})')}, factor)")
        scores = self.value(f"Add({scores}, {mask})") if mask else scores
        context = self.value(f"MatMul({self.value(f'Softmax<axis = -1>({scores})')}, {v})")
        together = self.value(f"Reshape({self.value(f'Transpose<perm = [0, 2, 1, 3]>({context})')}, joined)")
        return self.linear(together, SIZE, SIZE)

    def perceptron(self, value: str, activation: str = "Gelu") -> str:
        hidden = self.value(f"{activation}({self.linear(value, SIZE, UNITS)})")
        return self.linear(hidden, UNITS, SIZE)

    def gated(self, value: str) -> str:
        """An MLP with a gate, as LLaMA has it."""
        up, gate = self.linear(value, SIZE, UNITS), self.linear(value, SIZE, UNITS)
        active = self.value(f"Mul({gate}, {self.value(f'Sigmoid({gate})')})")
        return self.linear(self.value(f"Mul({active}, {up})"), UNITS, SIZE)

    def model(self, result: str, inputs: str = f"float[n, {TOKENS}, {SIZE}] x", output: str = "") -> ir.Model:
        name = result if result in {line.split(" ")[0] for line in self.lines} else self.value(f"Identity({result})")
        shape = output or f"float[n, {TOKENS}, {SIZE}] {name}"
        return network(inputs, shape, "  ".join(self.lines), **self.weights)


def pre_norm(writer: Writer, x: str) -> str:
    x = writer.value(f"Add({x}, {writer.attention(writer.norm(x))})")
    return writer.value(f"Add({x}, {writer.perceptron(writer.norm(x))})")


def post_norm(writer: Writer, x: str) -> str:
    x = writer.norm(writer.value(f"Add({writer.attention(x, mask='mask')}, {x})"))
    return writer.norm(writer.value(f"Add({writer.perceptron(x)}, {x})"))


def parallel(writer: Writer, x: str) -> str:
    """One normalization for both, and two additions in a row."""
    normed = writer.norm(x)
    first = writer.value(f"Add({x}, {writer.attention(normed)})")
    return writer.value(f"Add({first}, {writer.perceptron(normed)})")


def parallel_sum(writer: Writer, x: str) -> str:
    normed = writer.norm(x)
    branch = writer.value(f"Add({writer.attention(normed)}, {writer.perceptron(normed)})")
    return writer.value(f"Add({branch}, {x})")


def gated(writer: Writer, x: str) -> str:
    x = writer.value(f"Add({x}, {writer.attention(writer.norm(x))})")
    return writer.value(f"Add({x}, {writer.gated(writer.norm(x))})")


def normed_behind(writer: Writer, x: str) -> str:
    """Normalizations behind the branches, as Swin V2 has them, and a factor for each channel."""
    branch = writer.value(f"Mul({writer.norm(writer.attention(x))}, {writer.weight(SIZE)})")
    x = writer.value(f"Add({x}, {branch})")
    return writer.value(f"Add({x}, {writer.norm(writer.perceptron(x))})")


def transformer(block: Callable[[Writer, str], str], depth: int = 3, *, masked: bool = False) -> ir.Model:
    """Some blocks behind each other."""
    writer, x = Writer(), "x"
    for _ in range(depth):
        x = block(writer, x)
    inputs = f"float[n, {TOKENS}, {SIZE}] x"
    return writer.model(x, f"{inputs}, float[n, 1, 1, {TOKENS}] mask" if masked else inputs)
