"""Samples for a network: from folders of images, arrays, lists and Python iterables to feeds that an engine runs.

Input: what the user calls data, and the specifications of the network's inputs. Output: `Samples`, an ordered, lazy
row of `Sample` records, grouped into runs by `batches`. Nothing here keeps more than a few decoded samples in memory,
loads a pickle, or looks at the values: NaN and infinity are found where statistics are made.
"""

from narrowgauge.data.batches import Batch, batches
from narrowgauge.data.inputs import InputSpec, input_specs
from narrowgauge.data.opening import open_samples
from narrowgauge.data.preprocess import (
    Color,
    Layout,
    Preprocess,
    apply,
    default_preprocess,
    load_preprocess,
    preprocess_toml,
)
from narrowgauge.data.samples import Sample, Samples

__all__ = [
    "Batch",
    "Color",
    "InputSpec",
    "Layout",
    "Preprocess",
    "Sample",
    "Samples",
    "apply",
    "batches",
    "default_preprocess",
    "input_specs",
    "load_preprocess",
    "open_samples",
    "preprocess_toml",
]
