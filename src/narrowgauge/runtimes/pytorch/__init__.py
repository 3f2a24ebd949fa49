"""PyTorch on the CPU: exported programs (programs.py), and Q/DQ networks in its integer kernels (quantized.py)."""

from narrowgauge.runtimes.pytorch.programs import compile_program, open_program

__all__ = ["compile_program", "open_program"]
