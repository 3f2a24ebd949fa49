"""PyTorch's engine oneDNN: Q/DQ networks in its integer kernels; see `quantized`."""

from functools import partial

from narrowgauge.runtimes.pytorch import quantized

open_program = partial(quantized.open_program, engine="onednn")
open_inner = partial(quantized.open_inner, engine="onednn")
