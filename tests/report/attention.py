"""Attention of a made-up network over a made-up image."""

from __future__ import annotations

import numpy as np

from narrowgauge.analysis.attention_pictures import AttentionPictures, HeadMaps, draw
from narrowgauge.analysis.records import AttentionHead


def attention_example(
    blocks: int = 4, heads: int = 3, *, tokens: int = 17, image: int = 32, prefix: str = ""
) -> tuple[tuple[AttentionHead, ...], AttentionPictures]:
    """Make heads whose weight moves more in each block, most of all in the last block's head 1."""
    generator = np.random.default_rng(0)
    maps = []
    for block in range(blocks):
        for head in range(heads):
            weights = generator.dirichlet(np.full(tokens, 0.3), tokens)
            share = 0.01 * (block + 1) + (0.005 if head == 1 else 0)
            moved = (1 - share) * weights + share * np.roll(weights, 1, axis=1)
            both = np.float32([weights, moved])
            record = AttentionHead(
                node=f"{prefix}softmax_{block}", value=f"{prefix}p_{block}", depth=10 * block, attention=block,
                block=block, head=head, moved=float(np.abs(both[0] - both[1]).sum(axis=-1).mean() / 2),
            )  # fmt: skip
            maps.append(HeadMaps.of(record, None, both))
    feed = {"x": generator.uniform(size=(1, 3, image, image)) if image else np.zeros((1, tokens), np.int64)}
    return tuple(one.record for one in maps), draw(maps, f"{prefix}dog.png", feed)
