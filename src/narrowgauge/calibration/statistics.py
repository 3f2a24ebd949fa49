"""What calibration saw of each tensor; statistics of shards add up to those of one pass."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.calibration.histogram import EMPTY, Histogram, merge_histograms
from narrowgauge.errors import OutputError, StatisticsError

FORMAT = "narrowgauge statistics 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelStatistics:
    """Extremes and sums per index of one axis.

    Attributes:
        axis: the axis of the tensor.
        minimum: smallest value per channel, real units, float32.
        maximum: largest value per channel.
        total: sum over the values that were summed up, float64.
        count: how many values that were, per channel.
    """

    axis: int
    minimum: npt.NDArray[np.float32]
    maximum: npt.NDArray[np.float32]
    total: npt.NDArray[np.float64]
    count: int

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean per channel, real units."""
        return self.total / max(self.count, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        minimum: smallest finite value, real units; infinity if there was none.
        maximum: largest finite value; minus infinity if there was none.
        histogram: counts over the leading bits, of every value where a sample's tensor has at most
            `Statistics.sampled` elements, else of about so many evenly spread ones per sample.
        channels: per channel; None where the tensor has no channel axis or its length changes between samples.
        nan_count: how many values were NaN.
        infinity_count: how many were infinite.
        first_bad: name of the first sample (by its place in the data) that held NaN or infinity, "" if none.
        first_bad_index: that sample's place, -1 if none.
    """

    minimum: float
    maximum: float
    histogram: Histogram
    channels: ChannelStatistics | None
    nan_count: int = 0
    infinity_count: int = 0
    first_bad: str = ""
    first_bad_index: int = -1

    @property
    def is_empty(self) -> bool:
        """Whether no finite value was seen."""
        return self.minimum > self.maximum


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What calibration saw.

    Attributes:
        tensors: value name -> what was seen of it.
        aliases: value name -> name of the value whose statistics also hold for it (a reshape's output; what an
            activation function clips, whose clipped-off part no integer needs).
        samples: how many samples were seen.
        sampled: elements of one sample's tensor up to which all are counted in the histogram.
        network: digest of the network's structure and weights.
    """

    tensors: Mapping[str, TensorStatistics]
    aliases: Mapping[str, str]
    samples: int
    sampled: int
    network: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "aliases", MappingProxyType(dict(self.aliases)))

    def of(self, value: str) -> TensorStatistics:
        """Return the statistics that hold for a value.

        Raises:
            StatisticsError: if the value was not observed.
        """
        name = value
        while name not in self.tensors and name in self.aliases:
            name = self.aliases[name]
        if name not in self.tensors:
            raise StatisticsError(f"no statistics of {value!r}: it was not observed; calibrate this network again")
        return self.tensors[name]

    def merge(self, other: Statistics) -> Statistics:
        """Add the statistics of two shards: commutative and associative; counts and extremes to the same bits.

        Sums of channels are float64 and agree to their rounding.

        Raises:
            StatisticsError: if the two are not of the same network or count differently.
        """
        if self.network != other.network:
            raise StatisticsError("expected statistics of the same network, got those of two different ones")
        if self.sampled != other.sampled:
            raise StatisticsError(
                f"expected statistics that count up to as many elements per tensor and sample, "
                f"got {self.sampled} and {other.sampled}"
            )
        names = list(self.tensors) + [name for name in other.tensors if name not in self.tensors]
        merged = {
            name: merge_tensors([part.tensors[name] for part in (self, other) if name in part.tensors])
            for name in names
        }
        return replace(self, tensors=merged, samples=self.samples + other.samples)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a file (npz, no pickle); the old file stays whole until the new one is.

        Raises:
            OutputError: if the file cannot be written.
        """
        save_statistics(self, Path(path))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Read from a file.

        Raises:
            StatisticsError: if the file cannot be read or holds no statistics.
        """
        return load_statistics(Path(path))


def merge_tensors(parts: Iterable[TensorStatistics]) -> TensorStatistics:
    """Add up what shards saw of one tensor; one that saw nothing of it changes nothing."""
    parts = list(parts)
    parts = [part for part in parts if not _saw_nothing(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    bad = sorted((part.first_bad_index, part.first_bad) for part in parts if part.first_bad_index >= 0)
    return TensorStatistics(
        minimum=min(part.minimum for part in parts),
        maximum=max(part.maximum for part in parts),
        histogram=merge_histograms([part.histogram for part in parts]),
        channels=_merge_channels([part.channels for part in parts]),
        nan_count=sum(part.nan_count for part in parts),
        infinity_count=sum(part.infinity_count for part in parts),
        first_bad_index=bad[0][0] if bad else -1,
        first_bad=bad[0][1] if bad else "",
    )


def _saw_nothing(part: TensorStatistics) -> bool:
    return part.is_empty and part.nan_count == 0 and part.infinity_count == 0


def _merge_channels(parts: list[ChannelStatistics | None]) -> ChannelStatistics | None:
    present = [part for part in parts if part is not None]
    if len(present) < len(parts) or len({(part.axis, part.minimum.shape) for part in present}) != 1:
        return None
    return ChannelStatistics(
        axis=present[0].axis,
        minimum=functools.reduce(np.minimum, [part.minimum for part in present]),
        maximum=functools.reduce(np.maximum, [part.maximum for part in present]),
        total=np.sum([part.total for part in present], axis=0),
        count=sum(part.count for part in present),
    )


# --- file -----------------------------------------------------------------------------------------------------


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics; see `Statistics.save`."""
    scalars = []
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for number, (name, tensor) in enumerate(statistics.tensors.items()):
        channels = tensor.channels
        scalars.append(
            {
                "name": name,
                "minimum": repr(tensor.minimum),
                "maximum": repr(tensor.maximum),
                "nan_count": tensor.nan_count,
                "infinity_count": tensor.infinity_count,
                "first_bad": tensor.first_bad,
                "first_bad_index": tensor.first_bad_index,
                "axis": None if channels is None else channels.axis,
                "channel_count": 0 if channels is None else channels.count,
            }
        )
        arrays[f"bins_{number}"] = tensor.histogram.bins
        arrays[f"counts_{number}"] = tensor.histogram.counts
        if channels is not None:
            arrays[f"channel_minimum_{number}"] = channels.minimum
            arrays[f"channel_maximum_{number}"] = channels.maximum
            arrays[f"channel_total_{number}"] = channels.total
    head = {
        "format": FORMAT,
        "samples": statistics.samples,
        "sampled": statistics.sampled,
        "network": statistics.network,
        "aliases": dict(statistics.aliases),
        "tensors": scalars,
    }
    buffer = io.BytesIO()
    header = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
    np.savez(buffer, header=header, **arrays)  # type: ignore[arg-type]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: could not write the statistics: {error.strerror}") from None


def load_statistics(path: Path) -> Statistics:
    """Read statistics; see `Statistics.load`."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _from_arrays(arrays)
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        message = f"{path}: expected statistics written by narrowgauge, could not read them: {error}"
        raise StatisticsError(message) from None


def _from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Statistics:
    head = json.loads(arrays["header"].tobytes())
    if head["format"] != FORMAT:
        raise ValueError(f"format is {head['format']!r}, expected {FORMAT!r}")
    tensors = {record["name"]: _tensor(arrays, number, record) for number, record in enumerate(head["tensors"])}
    return Statistics(
        tensors=tensors,
        aliases=head["aliases"],
        samples=head["samples"],
        sampled=head["sampled"],
        network=head["network"],
    )


def _tensor(arrays: Mapping[str, npt.NDArray[Any]], number: int, record: Mapping[str, Any]) -> TensorStatistics:
    channels = None
    if record["axis"] is not None:
        channels = ChannelStatistics(
            axis=record["axis"],
            minimum=arrays[f"channel_minimum_{number}"],
            maximum=arrays[f"channel_maximum_{number}"],
            total=arrays[f"channel_total_{number}"],
            count=record["channel_count"],
        )
    bins = arrays[f"bins_{number}"]
    return TensorStatistics(
        minimum=float(record["minimum"]),
        maximum=float(record["maximum"]),
        histogram=Histogram(bins=bins, counts=arrays[f"counts_{number}"]) if bins.size else EMPTY,
        channels=channels,
        nan_count=record["nan_count"],
        infinity_count=record["infinity_count"],
        first_bad=record["first_bad"],
        first_bad_index=record["first_bad_index"],
    )
