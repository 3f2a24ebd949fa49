"""The documentation holds: its examples are read by the code they are for, links lead somewhere, no key is missing."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer

from narrowgauge import demo, quantize
from narrowgauge.calibration.ranges import ESTIMATORS
from narrowgauge.cli.app import app
from narrowgauge.cli.guard import ExitCode
from narrowgauge.cli.outcome import FILES
from narrowgauge.core.encoding import encoding_from_json
from narrowgauge.core.plan import Plan, plan_from_json, plan_to_json
from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.recipe import PRESETS, Recipe, Rule, load_recipe
from narrowgauge.targets.registry import load_target

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("README.md"), *ROOT.glob("*/README.md")])
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def examples(language: str) -> list[Any]:
    return [
        pytest.param(page, block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, language), 1)
    ]


def unexplained(names: set[str], page: str) -> set[str]:
    """Names that a page does not give as a key of their own."""
    return {name for name in names if f"`{name}`" not in text(page)}


# --- examples -------------------------------------------------------------------------------------------------

TOML_READERS: dict[str, Callable[[Path], object]] = {
    "recipes.md": load_recipe,
    "command-line.md": load_preprocess,
    "transformers.md": load_recipe,
    "targets.md": load_target,
}
"""What reads each page's TOML examples."""


@pytest.mark.parametrize(("page", "block"), examples("toml"))
def test_toml_examples_are_read(page: Path, block: str, tmp_path: Path) -> None:
    path = tmp_path / "my-chip.toml"
    path.write_text(block, encoding="utf-8")
    assert TOML_READERS[page.name](path)


@pytest.mark.parametrize(("page", "block"), examples("json"))
def test_json_examples_are_read(page: Path, block: str) -> None:
    record = json.loads(block)
    if "encodings" not in record:
        encoding_from_json(record, name="example")
        return
    plan = plan_from_json(block)
    assert plan_from_json(plan_to_json(plan)).same_as(plan)


def command_lines() -> list[Any]:
    lines = [
        (page, line.partition(" #")[0].strip())
        for page in PAGES
        for block in blocks(page, "(?:sh|bash|console)")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [pytest.param(line, id=f"{page.name}: {line}") for page, line in lines if line.startswith("narrowgauge ")]


@pytest.mark.parametrize("line", command_lines())
def test_commands_and_their_options_exist(line: str) -> None:
    """Arguments are parsed, nothing is run."""
    _, name, *arguments = shlex.split(line)
    COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/, on the demo's network and data."""
    if page.parent.name != "docs":
        for block in blocks(page, "python"):
            compile(block, page.name, "exec")
        return
    monkeypatch.chdir(tmp_path)
    images, labels, trained = demo.digits()
    used = np.r_[:256, trained : len(images)]
    np.savez("digits.npz", image=images[used], labels=labels[used])
    Path("digits.onnx").write_bytes(demo.network_path("digits_conv").read_bytes())
    quantize("digits.onnx", "digits.npz", recipe="plain", out="first")
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


# --- links ----------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        there = (page.parent / file) if file else page
        assert there.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {link}"


def test_what_code_and_messages_point_to_is_there() -> None:
    named = {
        name
        for path in [*(ROOT / "src").rglob("*.py"), ROOT / "pyproject.toml"]
        for name in re.findall(r"(?<![\w/])docs/[\w-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert "docs/plan.md" in named
    ours = {name for name in named if name != "docs/ContribOperators.md"}  # ONNX Runtime's
    assert {name for name in ours if not (ROOT / name).is_file()} == set()


# --- completeness ---------------------------------------------------------------------------------------------


def test_every_key_of_a_plan_is_explained() -> None:
    keys = {field.name for field in dataclasses.fields(Plan)} | {"version"}
    of_encodings = {"type", "granularity", "axis", "size", "scale", "zero_point", "dynamic", "symmetric"}
    assert unexplained(keys | of_encodings, "plan.md") == set()


def test_every_key_of_a_recipe_is_explained() -> None:
    keys = {field.name for record in (Recipe, Rule) for field in dataclasses.fields(record)} - {"name"}
    assert unexplained(keys | set(PRESETS) | set(ESTIMATORS), "recipes.md") == set()


def test_every_estimator_is_explained() -> None:
    assert unexplained(set(ESTIMATORS), "statistics.md") == set()


def test_every_command_and_option_is_explained() -> None:
    page = text("command-line.md")
    assert {name for name in COMMANDS if f"| `{name}" not in page} == set()
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    assert {name for name in options if name.startswith("--") and f"`{name}" not in page} == set()


def test_defaults_are_those_of_the_code() -> None:
    section = text("command-line.md").split("## Options of `quantize`")[1].split("\n##")[0]
    for parameter in COMMANDS["quantize"].params:
        option = parameter.opts[0]
        if option.startswith("--") and parameter.default not in (None, "", False):
            row = re.search(rf"^\| `{option}\b[^|]*\| ([^|]*) \|", section, re.MULTILINE)
            assert row is not None, option
            assert row[1].strip("`") == str(parameter.default), option


def test_every_exit_code_and_file_is_explained() -> None:
    page = text("command-line.md")
    assert {code for code in ExitCode if f"| {code.value} |" not in page} == set()
    assert unexplained(set(FILES), "command-line.md") == set()


def test_every_key_of_the_summary_is_explained() -> None:
    images = demo.digits().images[:12]
    summary = quantize(demo.network_path("digits_conv"), {"image": images}, recipe="plain", samples=4).summary
    section = text("command-line.md").split("## `summary.json`")[1]
    assert re.findall(r"^\| `(\w+)` \|", section.split("`quantize --json`")[0], re.MULTILINE) == list(summary)
