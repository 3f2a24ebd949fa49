"""The attributes of an MXNet node: texts such as "(3, 3)", "True" and "1e-5", read as what they mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from narrowgauge.errors import ModelError

_TRUE, _FALSE = ("true", "1"), ("false", "0")
_INTEGER = re.compile(r"[+-]?\d+L?")
_MOST_DIGITS = 18
"""Of an integer of 64 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """Texts by name, and whose they are.

    Attributes:
        texts: as the file has them.
        where: operator and name of the node, for messages.
    """

    texts: Mapping[str, str]
    where: str

    def has(self, name: str) -> bool:
        """Whether the attribute is there and not None."""
        return self.texts.get(name, "None").strip() not in ("None", "")

    def text(self, name: str, default: str) -> str:
        """Return a word."""
        return self.texts[name].strip() if self.has(name) else default

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an integer.

        Raises:
            ModelError: it is none, or it is not there and has no default.
        """
        if default is not None and not self.has(name):
            return default
        text = self.texts.get(name, "None").strip()
        if not _INTEGER.fullmatch(text) or len(text) > _MOST_DIGITS:
            raise self.wrong(name, "an integer")
        return int(text.rstrip("L"))

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number.

        Raises:
            ModelError: it is none, or it is not there and has no default.
        """
        if default is not None and not self.has(name):
            return default
        try:
            found = float(self.texts.get(name, "None"))
        except ValueError as error:
            raise self.wrong(name, "a number") from error
        if not math.isfinite(found):
            raise self.wrong(name, "a finite number")
        return found

    def boolean(self, name: str, *, default: bool) -> bool:
        """Return a truth value.

        Raises:
            ModelError: it is none.
        """
        text = self.text(name, str(default)).lower()
        if text not in (*_TRUE, *_FALSE):
            raise self.wrong(name, "True or False")
        return text in _TRUE

    def sizes(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return integers in brackets, or one without.

        Raises:
            ModelError: it is none, or it is not there and has no default.
        """
        found = self.optional_sizes(name)
        if found is None or None in found:
            if default is not None and found is None:
                return default
            raise self.wrong(name, "integers in brackets")
        return tuple(size for size in found if size is not None)

    def optional_sizes(self, name: str) -> tuple[int | None, ...] | None:
        """Return integers in brackets, None among them where the text has it; None where nothing is there.

        Raises:
            ModelError: it is something else.
        """
        if not self.has(name):
            return None
        parts = self.texts[name].strip().strip("()[]").split(",")
        words = [word for part in parts if (word := part.strip())]
        if not all(word == "None" or (_INTEGER.fullmatch(word) and len(word) <= _MOST_DIGITS) for word in words):
            raise self.wrong(name, "integers in brackets")
        return tuple(None if word == "None" else int(word.rstrip("L")) for word in words)

    def wrong(self, name: str, expected: str) -> ModelError:
        """Make the error of an attribute that is not what it should be."""
        return ModelError(f"{self.where}: expected {expected} in the attribute {name!r}, got {self.texts.get(name)!r}")
