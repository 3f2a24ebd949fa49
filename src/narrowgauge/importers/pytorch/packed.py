"""Weights that PyTorch packed for an engine, taken out again."""

from __future__ import annotations

from typing import Any

from narrowgauge.errors import ModelError


def unpacked(packed: Any, name: str) -> Any:
    """Take weights out of an engine's own form; a module without forward holds them."""
    import torch

    holder = torch.nn.Module()
    try:
        parts = packed.unpack()
        weight, bias = parts if isinstance(parts, tuple) else (parts, None)
        for setting in ("stride", "padding", "output_padding", "dilation", "groups"):
            if hasattr(packed, setting):
                setattr(holder, setting, getattr(packed, setting)())
        _register_weight(holder, weight)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{name}: expected packed weights of a linear or convolution layer, got {type(packed).__name__} that "
            f"cannot be unpacked: {str(error).partition(chr(10))[0]}"
        ) from error
    holder.register_buffer("bias", None if bias is None else bias.detach().clone())
    return holder


def _register_weight(holder: Any, weight: Any) -> None:
    import torch

    if not weight.is_quantized:
        raise ValueError("its weights are no integers")
    channels = weight.qscheme() == torch.per_channel_affine
    if not channels and weight.qscheme() != torch.per_tensor_affine:
        raise ValueError(f"its weights have the scheme {weight.qscheme()}, whose zero points are no integers")
    # An engine may have packed channels last; whoever reads such a layout writes it into the network.
    holder.register_buffer("weight", weight.int_repr().contiguous())
    holder.lowest, holder.highest = (0, 255) if weight.dtype == torch.quint8 else (-128, 127)
    holder.axis = weight.q_per_channel_axis() if channels else None
    holder.register_buffer("scale", weight.q_per_channel_scales().float() if channels else None)
    holder.register_buffer("zero_point", weight.q_per_channel_zero_points() if channels else None)
    if not channels:
        holder.single = (weight.q_scale(), weight.q_zero_point())


def real_weight(holder: Any) -> Any:
    """Return the real numbers that unpacked weights stand for."""
    import torch

    known = torch.ops.quantized_decomposed
    levels = (holder.lowest, holder.highest, holder.weight.dtype)
    if holder.axis is None:
        return known.dequantize_per_tensor(holder.weight, *holder.single, *levels)
    return known.dequantize_per_channel(holder.weight, holder.scale, holder.zero_point, holder.axis, *levels)
