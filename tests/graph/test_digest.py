"""The fingerprint of a network: what it reads counts, what nothing reads does not."""

from __future__ import annotations

import numpy as np

from narrowgauge.graph.constants import add_constant, set_constant
from narrowgauge.graph.digest import network_digest
from tests.planning.networks import network, normal

NETWORK = network("float[n, 4] x", "float[n, 3] y", "m = MatMul(x, w)  y = Relu(m)", w=normal(4, 3))


def test_weights_that_nothing_reads_do_not_count() -> None:
    """A file that is read back lacks them, and is the same network."""
    other = NETWORK.clone()
    add_constant(other.graph, "left_over", np.ones(3, np.float32))
    assert network_digest(other) == network_digest(NETWORK)


def test_weights_and_names_count() -> None:
    changed, renamed = NETWORK.clone(), NETWORK.clone()
    set_constant(changed.graph.initializers["w"], normal(4, 3, seed=1))
    next(iter(renamed.graph)).outputs[0].name = "other"
    assert len({network_digest(one) for one in (NETWORK, changed, renamed)}) == 3
