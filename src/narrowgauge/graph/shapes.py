"""What is known of a value's shape, as plain Python values."""

import logging

import onnx_ir as ir
import onnx_ir.passes.common as common_passes


def dimensions(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return the sizes of the axes, None for each that is not known, or None where even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def rank(value: ir.Value | None) -> int | None:
    """Return the number of axes, or None where it is unknown."""
    if value is None or value.shape is None:
        return None
    return value.shape.rank()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sizes of all axes, or None where any is unknown."""
    sizes = dimensions(value)
    if sizes is None:
        return None
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == len(sizes) else None


def same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Tell whether two values surely have the same shape, symbolic sizes of the same name counting as equal."""
    if first.shape is None or second.shape is None or first.shape.rank() != second.shape.rank():
        return False
    return all(_same_size(a, b) for a, b in zip(first.shape, second.shape, strict=True))


def _same_size(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> bool:
    if isinstance(first, int) or isinstance(second, int):
        return first == second
    return first.value is not None and first.value == second.value


def infer_shapes(model: ir.Model) -> None:
    """Infer, in place, types and shapes by ONNX's own rules; what cannot be inferred stays as it is.

    Weights are left out of what ONNX is handed, so a network of any size passes. An operator that ONNX does not know
    has no inferred outputs, and nothing else suffers.
    """
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        logger.setLevel(level)
