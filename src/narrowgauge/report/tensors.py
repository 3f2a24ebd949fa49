"""What the page says of each tensor: the plan's encoding, its own loss, its cost at the output, what would help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from narrowgauge.analysis.encoding_words import representable, scale_words, shift_words, steps, type_words
from narrowgauge.analysis.records import Analysis, Remedy, Sensitivity, TensorLoss
from narrowgauge.analysis.roundings import RoundedEncoding
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding, LogEncoding
from narrowgauge.core.granularity import PerBlock
from narrowgauge.core.plan import Plan
from narrowgauge.report import figures

# Less than this share of the error at the output is not worth a word.
_WORTH_MENTIONING = 0.01

# Where leaving a tensor float wins less than this share of what it adds, that needs a word.
_LITTLE = 0.5

# A tensor's error is called clipping above this share, rounding below the rest of it.
_MOSTLY = 0.6

# With more wasted bits a range is called wide: a type of a quarter of the levels could say as much.
_MANY_WASTED_BITS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One quantized tensor, with what is known of it.

    Attributes:
        name: the value's or the initializer's.
        encoding: the plan's; None where the plan does not list it.
        loss: its own error; None where it was not analysed.
        sensitivity: its cost at the output; None where it was not measured.
        remedies: tried for it, best first.
        noise: output noise of the whole quantized network; None where it was not measured.
        part: what it is in a transformer, "block 7, MLP hidden"; "" where nothing is known.
    """

    name: str
    encoding: AnyEncoding | None
    loss: TensorLoss | None
    sensitivity: Sensitivity | None
    remedies: tuple[Remedy, ...]
    noise: float | None
    part: str = ""

    @property
    def kind(self) -> str:
        """activation, weights, or "" if unknown."""
        return self.loss.kind if self.loss else self.sensitivity.kind if self.sensitivity else ""

    @property
    def node(self) -> str:
        """The node that writes or reads it, "" if unknown."""
        return self.loss.node if self.loss else self.sensitivity.node if self.sensitivity else ""

    @property
    def operator(self) -> str:
        """That node's operator, "" if unknown."""
        return self.loss.operator if self.loss else ""

    @property
    def depth(self) -> int | None:
        """That node's place in the network's order."""
        return self.loss.depth if self.loss else self.sensitivity.depth if self.sensitivity else None

    @property
    def type(self) -> str:
        """Name of the number type."""
        return self.loss.type if self.loss else type_words(self.encoding) if self.encoding else ""

    @property
    def shifts(self) -> str:
        """How far the channels' scales lie apart, "shifts 0 to 5"; "" where they are not powers of two apart."""
        return shift_words(self.encoding)

    @property
    def granularity(self) -> str:
        """What one scale covers."""
        if self.loss:
            return self.loss.granularity
        return scale_words(self.encoding) if self.encoding else ""

    @property
    def range(self) -> tuple[float, float] | None:
        """Smallest and largest representable number; None where each tensor gets its own at run time."""
        if self.loss:
            return self.loss.range
        known = _known(self.encoding)
        return representable(known) if known is not None else None

    @property
    def scales(self) -> tuple[float, float] | None:
        """Smallest and largest step; None where it is chosen at run time."""
        if self.loss:
            return self.loss.scales
        known = _known(self.encoding)
        return steps(known, None) if known is not None else None

    @property
    def levels(self) -> int | None:
        """How many levels the type has."""
        if self.loss:
            return self.loss.levels
        return self.encoding.type.levels if self.encoding else None

    @property
    def cost(self) -> float | None:
        """What it adds to the output's noise by itself, as a share of that of the whole quantized network."""
        return _share(self.sensitivity.alone, self.noise) if self.sensitivity else None

    @property
    def saved(self) -> float | None:
        """Share of the output's noise that goes away if it alone is left float; negative where the noise grows."""
        return _share(self.sensitivity.gain, self.noise) if self.sensitivity else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal-to-noise ratio of the tensor itself, decibels; None where it was not analysed or is all zeros."""
        if self.loss is None or not self.loss.signal > 0:
            return None
        return figures.noise_decibels(self.loss.error / self.loss.signal)

    @property
    def clipping_share(self) -> float | None:
        """Share of clipping in the tensor's own error."""
        return _share(self.loss.clipping, self.loss.error) if self.loss else None


def tensors(plan: Plan, analysis: Analysis | None) -> list[Tensor]:
    """List every tensor of the plan or the analysis: by `Analysis.ranking`, then in the network's order."""
    found = analysis or Analysis()
    losses = {one.name: one for one in found.losses}
    costs = {one.name: one for one in found.sensitivities if one.kind != "layer"}
    remedies: dict[str, list[Remedy]] = {}
    for remedy in found.remedies:
        remedies.setdefault(remedy.tensor, []).append(remedy)
    rows = [
        Tensor(
            name=name, encoding=plan.encodings.get(name), loss=losses.get(name), sensitivity=costs.get(name),
            remedies=tuple(sorted(remedies.get(name, ()), key=_gain, reverse=True)),
            noise=found.noise if found.sensitivities else None, part=found.roles.get(name, ""),
        )
        for name in dict.fromkeys([*losses, *costs, *plan.encodings])
    ]  # fmt: skip
    order = {one.name: place for place, one in enumerate(found.ranking())}
    return sorted(rows, key=lambda row: order.get(row.name, len(order)))


def words(tensor: Tensor) -> list[str]:
    """Say what a tensor costs, why, and what would help, as sentences."""
    return [*_cost_words(tensor), *_cause_words(tensor), *_remedy_words(tensor)]


def worst(rows: Sequence[Tensor], most: int = 5) -> list[Tensor]:
    """Return the tensors that are worth a word on the first screen."""
    return [row for row in rows if row.cost is not None and row.cost >= _WORTH_MENTIONING][:most]


def role(tensor: Tensor) -> str:
    """Say what a tensor is: "output of Conv “block.3”", "weights of Gemm “head” (head)", "input of the network"."""
    if tensor.kind == "activation" and not tensor.node:
        return "input of the network"
    if not tensor.kind:
        return "tensor of the plan"
    node = f"{tensor.operator} “{tensor.node}”".strip()
    node = f"{node} ({tensor.part})" if tensor.part else node
    return f"output of {node}" if tensor.kind == "activation" else f"weights of {node}"


def _known(encoding: AnyEncoding | None) -> RoundedEncoding | None:
    """An encoding whose range and steps are known before a run."""
    if encoding is None or isinstance(encoding, DynamicEncoding):
        return None
    return None if isinstance(encoding, Encoding) and not encoding.scale.size else encoding


def error_change(remedy: Remedy) -> float | None:
    """Share of the output's noise that a remedy takes away; negative where it adds some."""
    return _share(remedy.gain, remedy.noise + remedy.gain)


def _cost_words(tensor: Tensor) -> list[str]:
    cost, saved = tensor.cost, tensor.saved
    if cost is None or saved is None:
        return []
    if max(cost, abs(saved)) < _WORTH_MENTIONING:
        return ["It costs next to nothing at the output."]
    made = f"By itself it adds {figures.percent(cost)} of the error at the output"
    if abs(saved) < _WORTH_MENTIONING:
        return [f"{made}; yet left float, next to nothing goes away."]
    if 0 < saved < _LITTLE * cost:
        return [f"{made}; yet left float, only {figures.percent(saved)} goes away: errors do not add up here."]
    if saved > 0:
        return [f"{made}; left float, {figures.percent(saved)} goes away."]
    return [f"{made}; yet left float, the error grows by {figures.percent(-saved)}: here errors cancel."]


def _cause_words(tensor: Tensor) -> list[str]:
    loss, share = tensor.loss, tensor.clipping_share
    if loss is None or share is None:
        return []
    sentences = []
    if share > _MOSTLY and isinstance(tensor.encoding, LogEncoding):
        sentences.append(
            f"Its own error is mostly clipping ({figures.percent(share)}): {figures.percent(loss.clipped_share)} of "
            "its elements are too small for a level and become 0."
        )
    elif share > _MOSTLY:
        sentences.append(
            f"Its own error is mostly clipping ({figures.percent(share)}): {figures.percent(loss.clipped_share)} of "
            f"its elements lie beyond {_beyond(tensor.encoding, loss.range)}."
        )
    elif share < 1 - _MOSTLY:
        sentences.append(f"Its own error is mostly rounding: {_step(loss.scales)} between levels.")
    else:
        sentences.append("Its own error is rounding and clipping in nearly equal parts.")
    affine = tensor.encoding is None or isinstance(tensor.encoding, Encoding)
    if affine and loss.wasted_bits > _MANY_WASTED_BITS:
        bits = loss.entropy_bits + loss.wasted_bits
        sentences.append(
            f"Its range is wide for what it mostly holds: {loss.entropy_bits:.1f} of {bits:.0f} bits carry information."
        )
    return sentences


def _beyond(encoding: AnyEncoding | None, span: tuple[float, float]) -> str:
    """Name the range that elements lie beyond: with several scales it is their own one's, not that of all together."""
    if isinstance(encoding, Encoding) and encoding.scale.size > 1:
        part = "block" if isinstance(encoding.granularity, PerBlock) else "channel"
        return f"the range of their {part} (the widest of all: {figures.interval(*span)})"
    return figures.interval(*span)


def _step(scales: tuple[float, float]) -> str:
    low, high = scales
    return f"a step of {figures.real(low)}" if low == high else f"steps of {figures.interval(low, high)}"


def _remedy_words(tensor: Tensor) -> list[str]:
    """Name the best remedy; leaving it float is the last resort, named only where nothing else helps."""
    helping = [remedy for remedy in tensor.remedies if (change := error_change(remedy)) and change >= _WORTH_MENTIONING]
    within = [remedy for remedy in helping if remedy.method != "float"]
    if within:
        best = within[0]
        detail = f" ({best.detail})" if best.detail else ""
        return [
            f"Of what was tried, “{best.method}”{detail} helps most: it takes away "
            f"{figures.percent(error_change(best))} of the error at the output."
        ]
    if helping:
        return ["Of what was tried, only leaving it float helps."]
    return ["Nothing that was tried helps."] if tensor.remedies else []


def _gain(remedy: Remedy) -> float:
    return -math.inf if math.isnan(remedy.gain) else remedy.gain


def _share(part: float, whole: float | None) -> float | None:
    """A share; None where it means nothing."""
    if whole is None or not whole > 0 or not math.isfinite(whole) or not math.isfinite(part):
        return None
    return part / whole
