"""Where the packaged networks lie."""

from pathlib import Path

from narrowgauge.errors import ModelError

NETWORK_NAMES = ("digits_conv", "digits_vit")
"""`digits_conv`: depthwise-separable convolutions, BatchNormalization (kept, not folded) and ReLU6.
`digits_vit`: a vision transformer (patch embedding, LayerNormalization, attention, GELU).
They get 98.8 % and 97.7 % of the 597 held-out images right (`digits`).

Input `image`: float32 `(N, 1, 8, 8)`, 0..1. Output `logits`: float32 `(N, 10)`.
"""


def network_path(name: str) -> Path:
    """Find a packaged float network.

    Args:
        name: One of `NETWORK_NAMES`.

    Raises:
        ModelError: There is no network of that name.
    """
    if name not in NETWORK_NAMES:
        raise ModelError(f"expected a demo network ({', '.join(NETWORK_NAMES)}), got {name!r}: choose one of these")
    return Path(__file__).parent / f"{name}.onnx"
