"""Which operators leave the channels along the last axis whole, against what ONNX Runtime does with them."""

import re

import numpy as np
import pytest

from narrowgauge.graph.channels import keeps_last_axis
from tests.planning.networks import network, node_of, run

B, T, D = 2, 4, 4  # as many tokens as channels: sizes alone do not tell which is which
CONSTANTS = {
    "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "back": np.array([-1]), "steps": np.array([2]),
    "last": np.array([-1]), "middle": np.array([1]), "far": np.array([-100]), "large": np.array([100]),
    "turned": np.array([3, 2, 1, 0]), "rows": np.array([1, 0]), "repeats": np.array([1, 1, 2]), "pick": np.array(1),
    "flat": np.array([B * T, D]), "narrow": np.array([B, 2 * T, 2]), "wide": np.array([3, B, T, D]),
}  # fmt: skip
# Whether the channels stay, and the rank of what comes out.
NODES = {
    "Identity(x)": (True, 3),
    "Transpose<perm = [1, 0, 2]>(x)": (True, 3),
    "Transpose<perm = [0, 2, 1]>(x)": (False, 3),
    "Transpose(x)": (False, 3),
    "Gather(x, rows)": (True, 3),
    "Gather<axis = 1>(x, turned)": (True, 3),
    "Gather<axis = 1>(x, pick)": (True, 2),
    "Gather<axis = -2>(x, turned)": (True, 3),
    "Gather<axis = 2>(x, turned)": (False, 3),
    "Gather<axis = -1>(x, turned)": (False, 3),
    "Slice(x, one, large, middle)": (True, 3),
    "Slice(x, one, large, middle, steps)": (True, 3),
    "Slice(x, back, far, middle, back)": (False, 3),  # only tokens turn, but nothing is lost by refusing
    "Slice(x, back, far, last, back)": (False, 3),
    "Slice(x, zero, two, last)": (False, 3),
    "Slice(x, zero, large, last)": (True, 3),
    "Reshape(x, flat)": (True, 2),
    "Reshape(x, narrow)": (False, 3),
    "Unsqueeze(x, one)": (True, 4),
    "Unsqueeze(x, last)": (False, 4),
    "Flatten<axis = 2>(x)": (True, 2),
    "Flatten<axis = 1>(x)": (False, 2),
    "Expand(x, wide)": (True, 4),
    "Concat<axis = 1>(x, x)": (True, 3),
    "Concat<axis = -1>(x, x)": (False, 3),
    "Tile(x, repeats)": (False, 3),
}


@pytest.mark.parametrize("body", NODES)
def test_what_keeps_channels_writes_each_in_its_place(body: str) -> None:
    kept, rank = NODES[body]
    read = set(re.findall(r"\w+", body))
    model = network(
        f"float[{B}, {T}, {D}] x", f"float[{', '.join('abcd'[:rank])}] y", f"y = {body}",
        **{name: array for name, array in CONSTANTS.items() if name in read},
    )  # fmt: skip
    assert keeps_last_axis(node_of(model, "y")) == kept
    if kept:  # numbers that are those of their channels: 0, 1, 2, 3 along the last axis
        channels = np.broadcast_to(np.arange(D, dtype=np.float32), (B, T, D))
        assert (run(model, channels) == np.arange(D)).all()


def test_sizes_that_are_not_known_keep_nothing() -> None:
    model = network("float[n, t, d] x, int64[3] s", "float[a, b, c] y", "y = Reshape(x, s)")
    assert not keeps_last_axis(node_of(model, "y"))


def test_steps_that_are_not_known_keep_nothing() -> None:
    model = network(
        f"float[{B}, {T}, {D}] x, int64[1] steps", f"float[{B}, {T}, {D}] y", "y = Slice(x, zero, large, last, steps)",
        **{name: CONSTANTS[name] for name in ("zero", "large", "last")},
    )  # fmt: skip
    assert not keeps_last_axis(node_of(model, "y"))
