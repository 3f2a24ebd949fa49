"""`targets`: the list, and each in full."""

from pathlib import Path

import pytest

from narrowgauge.targets.registry import target_names
from tests.cli.running import done, error_of, record


def test_the_list_names_every_target_within_80_columns() -> None:
    text = done("targets").stdout
    assert [name for name in target_names() if name not in text] == []
    assert max(map(len, text.splitlines())) <= 80
    assert [row["name"] for row in record("targets")] == list(target_names())


@pytest.mark.parametrize("name", target_names())
def test_a_target_in_full(name: str) -> None:
    text = done("targets", name).stdout
    assert max(map(len, text.splitlines())) <= 80
    for word in ("What it quantizes", "Operators", "Rounding", "Source:"):
        assert word in text
    assert record("targets", name)["name"] == name


def test_an_unknown_target_is_refused_with_a_hint() -> None:
    assert "did you mean tensorrt" in error_of("targets", "tensor-rt")


def test_a_target_of_the_users_own(tmp_path: Path) -> None:
    import narrowgauge.targets

    own = tmp_path / "mine.toml"
    source = Path(narrowgauge.targets.__file__).with_name("tvm.toml").read_text()
    own.write_text(source.replace('name = "tvm"', 'name = "mine"', 1))
    assert record("targets", own)["name"] == "mine"
