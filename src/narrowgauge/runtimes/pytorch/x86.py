"""PyTorch's default engine on x86-64, oneDNN or FBGEMM: Q/DQ networks in its integer kernels; see `quantized`."""

from functools import partial

from narrowgauge.runtimes.pytorch import quantized

open_program = partial(quantized.open_program, engine="x86")
open_inner = partial(quantized.open_inner, engine="x86")
