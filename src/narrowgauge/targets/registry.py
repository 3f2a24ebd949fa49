"""Find a target by its name, or read a user's own TOML file."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from narrowgauge.errors import TargetError
from narrowgauge.targets.schema import Target, target_from_toml


def target_names() -> tuple[str, ...]:
    """Name the targets that the package brings along, in alphabetical order: the TOML files beside this one."""
    folder = resources.files("narrowgauge.targets")
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_target(name_or_path: str | Path) -> Target:
    """Read a target.

    Args:
        name_or_path: one of `target_names()`, or the path of a TOML file (a `Path`, or a text that ends in `.toml`).

    Raises:
        TargetError: if no target has the name, or the file cannot be read or is malformed; the message says where.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml"):
        return _target_of_file(Path(name_or_path))
    if name_or_path not in target_names():
        raise TargetError(_unknown(name_or_path))
    file = resources.files("narrowgauge.targets") / f"{name_or_path}.toml"
    return target_from_toml(file.read_text(encoding="utf-8"), source=f"{name_or_path}.toml")


def _target_of_file(path: Path) -> Target:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: expected a target in TOML, could not read it: {error}") from None
    return target_from_toml(text, source=str(path))


def _unknown(name: str) -> str:
    known = target_names()
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    return (
        f"expected a target, got {name!r};{hint} Known are {', '.join(known)}. "
        "A target of your own is the path of a file that ends in .toml"
    )
