"""docs/targets.md says what the data says."""

import dataclasses
from pathlib import Path

import pytest

from narrowgauge.targets.describe import TargetSummary, summary_rows
from narrowgauge.targets.schema import Arithmetic, FixedOutput, OperatorRule, Target, TensorRules, target_from_toml

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", summary_rows(), ids=lambda row: row.name)
def test_the_table_has_the_line_of_each_target(row: TargetSummary) -> None:
    exact, files = "yes" if row.bit_exact else "no", ", ".join(row.formats) or "none"
    cells = (f"`{row.name}`", f"{row.title}, {row.version}", row.activations, row.weights, row.operators, row.rounding)
    assert f"| {' | '.join(map(str, cells))} | {exact} | {files} |" in PAGE


@pytest.mark.parametrize("record", [Target, TensorRules, Arithmetic, OperatorRule, FixedOutput])
def test_every_key_is_explained(record: type) -> None:
    keys = {field.name for field in dataclasses.fields(record)} - {"activations", "weights", "arithmetic"}
    assert {key for key in keys if f"`{key}`" not in PAGE} == set()


def test_the_example_is_a_target() -> None:
    example = PAGE.split("```toml")[1].split("```")[0]
    assert target_from_toml(example, source="example").name == "my-chip"
