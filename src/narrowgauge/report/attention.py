"""Attention before and after, as the page's scripts show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from narrowgauge.analysis.attention_maps import attention_names, describe_attention
from narrowgauge.analysis.attention_pictures import AttentionPicture, AttentionPictures, pictured
from narrowgauge.analysis.records import AttentionHead
from narrowgauge.report import figures

# Digits of a weight that a picture needs.
_DIGITS = 5


def attention_sentences(heads: Sequence[AttentionHead], pictures: AttentionPictures | None) -> list[str]:
    """Say which head changes most, and which have no picture; nothing where there is no attention."""
    if not heads:
        return []
    said = describe_attention(heads)
    sentences = [f"{said[:1].upper()}{said[1:]}, on one sample."]
    shown = pictured(pictures.pictures) if pictures is not None else 0
    if 0 < shown < len(heads):
        sentences.append(f"Pictures are of the {shown} heads that change most, of {len(heads):,}.")
    return sentences


def attention_data(heads: Sequence[AttentionHead], pictures: AttentionPictures | None) -> dict[str, Any] | None:
    """Return what the scripts need as JSON values; None where there is no attention."""
    if not heads:
        return None
    sample = pictures or AttentionPictures(sample="")
    names = attention_names(heads)
    return {
        "heads": [
            {
                "attention": one.attention, "place": names[one.attention], "head": one.head, "node": one.node,
                "moved": round(one.moved, _DIGITS), "text": figures.percent(one.moved),
            }
            for one in heads
        ],
        "sample": {"name": sample.sample, "rows": sample.rows, "columns": sample.columns, "pixels": sample.pixels},
        "pictures": [_picture(one) for one in sample.pictures],
    }  # fmt: skip


def _picture(one: AttentionPicture) -> dict[str, Any]:
    return {
        "attention": one.attention, "head": one.head, "shown": one.shown, "window": one.window, "rows": one.rows,
        "columns": one.columns, "highest": float(f"{one.highest:.{_DIGITS}g}"), "weights": one.weights,
        "furthest": float(f"{one.furthest:.{_DIGITS}g}"), "changes": one.changes,
    }  # fmt: skip
