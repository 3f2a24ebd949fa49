"""Train the two networks that `narrowgauge demo` quantizes, and write them where the package keeps them.

    pip install -e ".[demo]" torch==2.13.0
    python examples/train_digits.py            # both: about five minutes on two cores
    python examples/train_digits.py digits_vit

Both learn scikit-learn's handwritten digits (8x8 pixels): samples [0:1200] train, samples [1200:1797] are held out.
Nothing of the held-out part reaches training: it runs for a fixed number of epochs, and its last weights are kept. The
seed is fixed; another machine, number of threads or version of PyTorch gives slightly different weights (one thread
instead of two: 99.2 % instead of 98.8 % for `digits_conv`).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime
import torch
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, nn
from torch.nn import functional

from narrowgauge.demo import Digits, digits, network_path

SEED = 7
CLASSES = 10
OPSET = 18
EPOCHS = {"digits_conv": 120, "digits_vit": 300}
BATCH = 100
LEARNING_RATE = {"digits_conv": 4e-3, "digits_vit": 1.5e-3}


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Build a convolution without bias, BatchNorm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a pointwise convolution (A. Howard et al., "MobileNets", 2017), shortcut if it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv_bn_relu6(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = conv_bn_relu6(inputs, outputs, 1)
        self.has_shortcut = inputs == outputs and stride == 1

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        changed: Tensor = self.pointwise(self.depthwise(features))
        return features + changed if self.has_shortcut else changed


def conv_network() -> nn.Module:
    """Build the convolutional network: 8x8 pixels, four separable blocks down to 4x4, mean, linear."""
    return nn.Sequential(
        conv_bn_relu6(1, 32, 3),
        SeparableBlock(32, 64, stride=1),
        SeparableBlock(64, 96, stride=2),
        SeparableBlock(96, 96, stride=1),
        SeparableBlock(96, 128, stride=1),
        SeparableBlock(128, 128, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, CLASSES),
    )


class TransformerBlock(nn.Module):
    """LayerNorm, attention, LayerNorm, GELU MLP (A. Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attention(self, tokens: Tensor) -> Tensor:
        """Mix tokens `(N, T, width)`."""
        count, length, width = tokens.shape
        split = self.query_key_value(tokens).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, width / heads)
        weights = (query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        mixed: Tensor = self.projection((weights @ value).transpose(1, 2).reshape(count, length, width))
        return mixed

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens `(N, T, width)` to the same shape."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens)))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))


class VisionTransformer(nn.Module):
    """Sixteen patches of 2x2 pixels, three blocks, mean over the tokens, linear."""

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, dropout) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map `(N, 1, 8, 8)` to logits `(N, 10)`."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions  # (N, 16, width)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


BUILDERS: dict[str, Callable[[], nn.Module]] = {"digits_conv": conv_network, "digits_vit": VisionTransformer}


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, stretch, shear and shift each image a little, as other hands would, and vary its ink."""
    count = len(images)
    affine = torch.eye(2, 3).repeat(count, 1, 1)
    affine[:, :, :2] += torch.empty(count, 2, 2).uniform_(-0.2, 0.2, generator=generator)
    affine[:, :, 2] = torch.empty(count, 2).uniform_(-0.2, 0.2, generator=generator)  # +-0.8 pixel
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    ink = torch.empty(count, 1, 1, 1).uniform_(0.85, 1.15, generator=generator)
    return (functional.grid_sample(images, grid, align_corners=False) * ink).clamp(0, 1)


def train(name: str, data: Digits) -> nn.Module:
    """Train from the seed on the training part; AdamW, one learning-rate cycle, label smoothing."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    network = BUILDERS[name]()
    images = torch.from_numpy(data.images[: data.train_count])
    labels = torch.from_numpy(data.labels[: data.train_count])
    steps = EPOCHS[name] * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE[name], total_steps=steps)
    network.train()
    for epoch in range(EPOCHS[name]):
        losses = []
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
            logits = network(distort(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 20 == 0:
            print(f"{name}: epoch {epoch} of {EPOCHS[name]}, loss {np.mean(losses):.3f}", flush=True)
    return network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Write the network with its BatchNorm as it is, a free batch axis, and nothing of this machine in it."""
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        optimize=False,  # it would fold BatchNorm, which is the importer's work to show
        verbose=False,
    )
    model = program.model
    fold_constants_ir(model)
    tidy = ir.passes.Sequential(
        common_passes.IdentityEliminationPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedFunctionsPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.NameFixPass(),
        common_passes.ClearMetadataAndDocStringPass(),  # the exporter writes source lines and folders there
    )
    tidy(model)
    outputs = [output for node in model.graph.all_nodes() for output in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *outputs):
        value.metadata_props.clear()
    ir.save(model, path)


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Measure the share of images `(N, 1, 8, 8)` that the written network gets right."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": images})[0]
    return float((logits.argmax(axis=1) == labels).mean())


def main() -> None:
    """Train, write and check the networks named on the command line, or all."""
    data = digits()
    for name in sys.argv[1:] or BUILDERS:
        path = network_path(name)
        export(train(name, data), path)
        held_out = accuracy(path, data.images[data.train_count :], data.labels[data.train_count :])
        trained = accuracy(path, data.images[: data.train_count], data.labels[: data.train_count])
        print(f"{path.name}: {path.stat().st_size} bytes, accuracy {held_out:.4f} held out, {trained:.4f} trained on")


if __name__ == "__main__":
    main()
