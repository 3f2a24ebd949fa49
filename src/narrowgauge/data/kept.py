"""Samples that are gone through several times: read once, and kept where they fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from narrowgauge.data.batches import Batch, batches
from narrowgauge.data.inputs import InputSpec
from narrowgauge.data.samples import Samples

# What may be kept: some 900 colour images of 224 x 224.
KEPT_BYTES = 512 * 2**20


class KeptBatches:
    """Batches of samples that can be gone through again; what is more than fits is read anew each time."""

    def __init__(self, samples: Samples, size: int, inputs: Sequence[InputSpec], *, limit: int = KEPT_BYTES) -> None:
        """Read nothing yet.

        Args:
            samples: that can be read more than once, or that fit.
            size: rows of a batch, at most, see `batches`.
            inputs: the network's inputs.
            limit: bytes to keep.
        """
        self._samples, self._size, self._inputs, self._limit = samples, size, inputs, limit
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Go through all of them from the first on."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] = []
        free = self._limit
        for batch in batches(self._samples, self._size, self._inputs):
            free -= sum(array.nbytes for array in batch.feed.values())
            if free >= 0:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        self._kept = kept if free >= 0 else None
