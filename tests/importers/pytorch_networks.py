"""Small PyTorch networks of the kinds that people bring, for the tests of the importer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from torch import nn  # noqa: E402 - behind the skip
from torch.nn import functional  # noqa: E402 - behind the skip


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return self.act(x + self.conv2(self.act(self.bn1(self.conv1(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        x = self.layer1(self.stem(image))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 4, 1),
        )  # fmt: skip
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x).mean((2, 3))).softmax(-1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.norm2 = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Any) -> Any:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList([Attention()])
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.out(self.gru(self.lstm(x)[0])[0][:, -1])


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2, groups=2)

    def forward(self, x: Any) -> Any:
        x = self.conv(functional.pad(x, (1, 1, 1, 1))).relu_()
        x = x.clone()
        x[:, 0] += 1
        y = functional.avg_pool2d(functional.interpolate(x, scale_factor=2, mode="nearest"), 2)
        first, second = self.up(y).chunk(2, 1)
        z = functional.interpolate(first * torch.sigmoid(second), size=(8, 8), mode="bilinear", align_corners=False)
        return functional.adaptive_avg_pool2d(functional.max_pool2d(z, 2), (2, 2)).reshape(x.size(0), -1)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.yes = nn.Linear(4, 4)
        self.no = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, self.yes, lambda t: self.no(t) - 1, (x,))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: Any, dense: Any, mask: Any = None) -> dict[str, Any]:
        total = self.table(ids).mean(1) + self.shared(self.shared(dense))
        return {"total": total, "bounded": torch.tanh(total)}


class TakesDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, batch: dict[str, Any]) -> Any:
        return self.fc(batch["image"]) * batch["weight"]


class CifarBlock(nn.Module):
    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if before == channels else 2
        self.conv1 = nn.Conv2d(before, channels, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            more = y.shape[1] // 4
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
        return functional.relu(x + y)


class CifarResNet20(nn.Module):
    """He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2015, section 4.2, shortcuts A."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = {"layer1": (16, 16), "layer2": (16, 32), "layer3": (32, 64)}
        for name, (before, width) in widths.items():
            blocks = [CifarBlock(before, width), CifarBlock(width, width), CifarBlock(width, width)]
            setattr(self, name, nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.avg_pool2d(x, x.size(3)).flatten(1))


class FixedRows(nn.Module):
    """Takes four rows and no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Any) -> Any:
        return self.fc(x.reshape(4, 6)) + torch.arange(4.0).reshape(4, 1)


class Unrolled(nn.Module):
    """Takes one step for each entry of the first axis, in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        state, states = torch.zeros(4), []
        for step in range(x.shape[0]):
            state = torch.tanh(self.cell(x[step]) + state)
            states.append(state)
        return torch.stack(states)


def seeded(build: Callable[[], Any]) -> Any:
    """Build a module with weights that are all different from 0 and 1, in evaluation mode."""
    torch.manual_seed(0)
    module = build().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return module
