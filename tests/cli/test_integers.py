"""What the screen says of integers inside an engine."""

import io
from typing import Any

from rich.console import Console

from narrowgauge.cli.integers import integers


def shown(record: dict[str, Any], runtime: str = "litert") -> str:
    written = io.StringIO()
    console = Console(width=400, file=written)
    for part in integers(record, runtime):
        console.print(part)
    return written.getvalue()


def row(name: str, different: int = 0, elements: int = 100, own: int | None = None) -> dict[str, Any]:
    return {
        "name": name, "node": f"{name}_node", "operator": "Conv", "elements": elements, "different": different,
        "max": 3 if different else 0, "off_by": {"1": different} if different else {},
        "own": None if own is None else {"different": own, "max": 1, "off_by": {}}, "remark": "",
    }  # fmt: skip


def record(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    different = sum(one["different"] for one in rows)
    return {
        "elements": sum(one["elements"] for one in rows), "different": different, "max": 3 if different else 0,
        "off_by": {"1": different} if different else {}, "only_ours": [], "only_runtime": [], "tensors": list(rows),
        **changes,
    }  # fmt: skip


def test_nothing_differs() -> None:
    assert shown(record(row("a"), row("b"))).splitlines() == [
        "All 200 integers in 2 tensors inside LiteRT are those that we compute."
    ]


def test_the_histogram_and_the_first_tensors_are_shown() -> None:
    rows = [row("a"), row("b", different=1, own=1), *(row(f"c{n}", different=7, own=0) for n in range(12))]
    text = shown(record(*rows, off_by={"1": 80, "2": 4, "more": 1}, max=40))
    assert "85 differ from those that we compute: 80 by 1, 4 by 2, 1 by more than 10 (at most 40)." in text
    lines = text.splitlines()
    assert lines[2].split() == ["b", "Conv", "1", "of", "100", "1", "3"]
    assert lines[3].split() == ["c0", "Conv", "7", "of", "100", "0", "3"]
    assert "and 3 tensors behind them" in text
    assert "a " not in "".join(line[:2] for line in lines[1:12])


def test_what_was_not_compared_is_counted() -> None:
    text = shown(record(row("a"), row("b", elements=0), only_ours=["p", "q", "r", "s"], only_runtime=["t"]))
    assert "All 100 integers in 1 tensor" in text
    assert "4 tensors that only we compute (p, q, r, ...)" in text
    assert "1 tensor that only the engine shows (t)" in text
    assert "1 tensor whose shapes or types do not fit (b)" in text
