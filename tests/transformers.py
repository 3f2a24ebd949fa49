"""Small transformers with random weights, written and exported as people do, for tests of patterns and plans.

Weights have a realistic spread, since those of ordinary initialisation hide what costs accuracy: normalization gains
that differ by factors, and a hidden unit that reaches far on few tokens.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.graph.engine import open_session

torch = pytest.importorskip("torch", reason="needs PyTorch")

from torch import nn  # noqa: E402 - behind the skip
from torch.nn import functional  # noqa: E402 - behind the skip

WIDTH, HEADS, SIZE, PATCH, WINDOW, CLASSES = 32, 2, 32, 8, 4, 10
Array = np.ndarray[Any, Any]


class PackedAttention(nn.Module):
    """One layer for queries, keys and values, as timm and FQ-ViT write it."""

    def __init__(self, *, fused: bool, width: int = WIDTH, qk_norm: bool = False) -> None:
        super().__init__()
        self.fused, self.scale = fused, (width // HEADS) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // HEADS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // HEADS) if qk_norm else nn.Identity()

    def forward(self, x: Any) -> Any:
        rows, tokens, width = x.shape
        parts = self.qkv(x).reshape(rows, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x = functional.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


class SeparateAttention(nn.Module):
    """Three layers and a division by the root, as Hugging Face wrote it for years."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense = nn.Linear(WIDTH, WIDTH)

    def for_scores(self, x: Any) -> Any:
        return x.view(*x.size()[:-1], HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

    def forward(self, x: Any, mask: Any = None) -> Any:
        q, k, v = (self.for_scores(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5
        if mask is not None:
            scores = scores + mask
        context = torch.matmul(nn.functional.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return self.dense(context.view(*context.size()[:-2], WIDTH))


class BatchedAttention(nn.Module):
    """Heads in the batch, products of three axes, as fairseq writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Any) -> Any:
        rows, tokens, _ = x.shape
        depth = WIDTH // HEADS
        x = x.transpose(0, 1)
        q, k, v = (
            layer(x).contiguous().view(tokens, rows * HEADS, depth).transpose(0, 1)
            for layer in (self.q, self.k, self.v)
        )
        weights = functional.softmax(torch.bmm(q * depth**-0.5, k.transpose(1, 2)), dim=-1)
        x = torch.bmm(weights, v).transpose(0, 1).contiguous().view(tokens, rows, WIDTH)
        return self.out(x).transpose(0, 1)


class BiasedAttention(PackedAttention):
    """A bias for each head and distance between positions, as BEiT has it."""

    def __init__(self) -> None:
        super().__init__(fused=False)
        side = SIZE // PATCH
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, HEADS))
        self.register_buffer("index", distances(side))

    def forward(self, x: Any) -> Any:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(rows, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        x = (scores + bias.unsqueeze(0)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


class EinsumAttention(nn.Module):
    """Products as sums over named axes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        rows, tokens, _ = x.shape
        q, k, v = (part.view(rows, tokens, HEADS, -1) for part in self.qkv(x).chunk(3, -1))
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return self.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(rows, tokens, WIDTH))


class TorchAttention(nn.Module):
    """PyTorch's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.inner(x, x, x, need_weights=False)[0]


class OwnNorm(nn.Module):
    """Layer normalization by hand; `square` and `epsilon` as people vary them."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Any) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return self.weight * (centred * torch.rsqrt(variance + 1e-6)) + self.bias


class CubicGelu(nn.Module):
    """The approximation by the hyperbolic tangent, its cube as three factors."""

    def forward(self, x: Any) -> Any:
        return 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


class PowerGelu(nn.Module):
    """The same with a power, as GPT-2 has it."""

    def forward(self, x: Any) -> Any:
        return 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0))))


class Mlp(nn.Module):
    def __init__(self, width: int, act: Callable[[], Any]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), act(), nn.Linear(2 * width, width)

    def forward(self, x: Any) -> Any:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Any) -> Any:
        return x * self.gamma


class Block(nn.Module):
    """Normalization before (as vision transformers have it) or behind each half."""

    def __init__(
        self, attention: Callable[[], Any], act: Callable[[], Any], norm: Callable[[int], Any],
        *, layer_scale: bool, before: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.before = before
        self.norm1, self.attn = norm(WIDTH), attention()
        self.norm2, self.mlp = norm(WIDTH), Mlp(WIDTH, act)
        self.ls1, self.ls2 = (LayerScale(WIDTH) if layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x: Any) -> Any:
        if not self.before:
            x = self.norm1(x + self.ls1(self.attn(x)))
            return self.norm2(x + self.ls2(self.mlp(x)))
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """ViT and DeiT as timm writes them: A. Dosovitskiy et al., 2021; H. Touvron et al., 2021 (distillation token)."""

    def __init__(
        self, attention: Callable[[], Any] = lambda: PackedAttention(fused=True), act: Callable[[], Any] = nn.GELU,
        norm: Callable[[int], Any] = nn.LayerNorm, *, pool: str = "token", distilled: bool = False,
        layer_scale: bool = False, before: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pool, self.distilled = pool, distilled
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.prefix = (pool == "token") + distilled
        self.tokens = nn.ParameterList([nn.Parameter(torch.zeros(1, 1, WIDTH)) for _ in range(self.prefix)])
        self.position = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + self.prefix, WIDTH))
        self.blocks = nn.ModuleList(
            [Block(attention, act, norm, layer_scale=layer_scale, before=before) for _ in range(2)]
        )
        self.norm = norm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.second = nn.Linear(WIDTH, CLASSES) if distilled else None

    def forward(self, image: Any) -> Any:
        x = self.embed(image).flatten(2).transpose(1, 2)
        if self.prefix:
            x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in self.tokens), x], 1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.pool == "avg":
            return self.head(x.mean(1))
        return self.head(x[:, 0]) if self.second is None else (self.head(x[:, 0]) + self.second(x[:, 1])) / 2


def distances(side: int) -> Any:
    """Number of the distance between two positions of a square, [positions, positions]."""
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    apart = (places[:, :, None] - places[:, None, :]).permute(1, 2, 0) + side - 1
    return apart[..., 0] * (2 * side - 1) + apart[..., 1]


def windows_of(x: Any) -> Any:
    rows, height, width, channels = x.shape
    x = x.view(rows, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, WINDOW, WINDOW, channels)


def whole_of(x: Any, height: int, width: int) -> Any:
    channels = x.shape[-1]
    x = x.view(-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, channels)


class WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.scale, self.fused = heads, (width // heads) ** -0.5, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("index", distances(WINDOW))

    def bias(self) -> Any:
        area = WINDOW * WINDOW
        return self.table[self.index.view(-1)].view(area, area, -1).permute(2, 0, 1).contiguous().unsqueeze(0)

    def forward(self, x: Any, mask: Any = None) -> Any:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            bias = self.bias()
            if mask is not None:
                windows = mask.shape[0]
                each = mask.view(1, windows, 1, tokens, tokens).expand(rows // windows, -1, self.heads, -1, -1)
                bias = bias + each.reshape(-1, self.heads, tokens, tokens)
            x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1) + self.bias()
            if mask is not None:
                windows = mask.shape[0]
                scores = scores.view(-1, windows, self.heads, tokens, tokens) + mask.unsqueeze(1).unsqueeze(0)
                scores = scores.view(-1, self.heads, tokens, tokens)
            x = scores.softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


class WindowBlock(nn.Module):
    def __init__(self, width: int, heads: int, side: int, shift: int, *, fused: bool) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, heads, fused=fused)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, nn.GELU)
        self.register_buffer("mask", shifted_mask(side, shift) if shift else None)

    def forward(self, x: Any) -> Any:
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        width = y.shape[-1]
        parts = windows_of(y).view(-1, WINDOW * WINDOW, width)
        parts = self.attn(parts, self.mask).view(-1, WINDOW, WINDOW, width)
        y = whole_of(parts, self.side, self.side)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        x = x.reshape(x.shape[0], -1, width)
        return (x + self.mlp(self.norm2(x))).reshape(-1, self.side, self.side, width)


def shifted_mask(side: int, shift: int) -> Any:
    """Keep parts of a window apart that the shift brought together: -100 between them."""
    picture = torch.zeros(1, side, side, 1)
    number = 0
    parts = (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None))
    for rows in parts:
        for columns in parts:
            picture[:, rows, columns] = number
            number += 1
    numbers = windows_of(picture).view(-1, WINDOW * WINDOW)
    return (numbers.unsqueeze(1) != numbers.unsqueeze(2)).float() * -100.0


class Merging(nn.Module):
    """Four neighbours to one position; `sliced` as the authors and Hugging Face write it, else as timm does now."""

    def __init__(self, width: int, *, sliced: bool) -> None:
        super().__init__()
        self.sliced = sliced
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Any) -> Any:
        rows, height, width, channels = x.shape
        if self.sliced:
            x = torch.cat([x[:, r::2, c::2] for c in (0, 1) for r in (0, 1)], -1)
        else:
            x = x.reshape(rows, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class WindowTransformer(nn.Module):
    """Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021."""

    def __init__(self, *, fused: bool = False, sliced: bool = True) -> None:
        super().__init__()
        width, side = 16, SIZE // 4
        self.embed, self.embed_norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.first = nn.Sequential(
            WindowBlock(width, 2, side, 0, fused=fused), WindowBlock(width, 2, side, WINDOW // 2, fused=fused)
        )
        self.merging = Merging(width, sliced=sliced)
        self.second = nn.Sequential(WindowBlock(2 * width, 4, side // 2, 0, fused=fused))
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, image: Any) -> Any:
        x = self.embed_norm(self.embed(image).permute(0, 2, 3, 1))
        x = self.norm(self.second(self.merging(self.first(x))))
        return self.head(x.mean((1, 2)))


class MaskedEncoder(nn.Module):
    """A text encoder whose mask is made of an input, as BERT has it; `lowest` is added where nothing is to be read."""

    def __init__(self, lowest: float = -10000.0) -> None:
        super().__init__()
        self.lowest = lowest
        self.words, self.positions = nn.Embedding(50, WIDTH), nn.Embedding(12, WIDTH)
        self.norm, self.attn, self.norm1 = nn.LayerNorm(WIDTH), SeparateAttention(), nn.LayerNorm(WIDTH)
        self.mlp, self.norm2 = Mlp(WIDTH, nn.GELU), nn.LayerNorm(WIDTH)
        self.pooler, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        added = (1.0 - mask[:, None, None, :].to(torch.float32)) * self.lowest
        x = self.norm1(x + self.attn(x, added))
        x = self.norm2(x + self.mlp(x))
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def spread(module: Any, seed: int = 0) -> Any:
    """Give a module weights as trained ones are spread, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(torch.exp(0.5 * noise))
            elif name.endswith(("gamma", "lambda_1", "lambda_2")):
                parameter.copy_(0.7 * torch.exp(0.3 * noise))
            elif parameter.ndim >= 2 and name.endswith("weight"):
                parameter.copy_(noise * 1.5 / max(parameter[0].numel(), 1) ** 0.5)
            else:
                parameter.copy_(0.4 * noise)
            if name.endswith(("fc1.weight", "intermediate.dense.weight")):
                parameter[3] *= 4  # one unit fires hard on few tokens
    return module.eval()


def pictures(count: int, size: int = SIZE, seed: int = 0) -> Array:
    """Smooth pictures, normalized, NCHW."""
    generator = np.random.default_rng(seed)
    coarse = generator.standard_normal((count, 3, size // 4, size // 4)).repeat(4, 2).repeat(4, 3)
    fine = generator.standard_normal((count, 3, size, size))
    return (coarse + 0.2 * fine).astype(np.float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporters of PyTorch print and warn of to themselves."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def export(module: Any, example: tuple[Any, ...], path: Path, *, dynamo: bool, opset: int) -> Path:
    """Write a module with PyTorch's exporter, the newer one or that by TorchScript, for any number of rows."""
    names = [f"input{number}" for number in range(len(example))]
    with quiet():
        if dynamo:
            shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
            torch.onnx.export(
                module, example, path, dynamo=True, opset_version=opset, input_names=names, output_names=["out"],
                dynamic_shapes=shapes, external_data=False, verbose=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                module, example, path, dynamo=False, opset_version=opset, input_names=names, output_names=["out"],
                dynamic_axes={name: {0: "n"} for name in names},
            )  # fmt: skip
    return path


def answers(module: Any, *inputs: Array) -> Array:
    with torch.no_grad():
        found = module(*(torch.from_numpy(each) for each in inputs))
    tensor = found if isinstance(found, torch.Tensor) else found.logits
    return np.asarray(tensor.numpy())


def computed(model: ir.Model, *inputs: Array) -> Array:
    """First output of a network in ONNX Runtime, Q/DQ pairs as they are written."""
    session = open_session(model, threads=1, optimization="basic", simulate=True)
    feed: Mapping[str, Array] = {value.name: each for value, each in zip(session.get_inputs(), inputs, strict=True)}
    return np.asarray(session.run(None, feed)[0])


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)
