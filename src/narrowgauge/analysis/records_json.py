"""The analysis on disk: records to JSON text and back, checked against the records' own types.

JSON has no infinity and no NaN, so these three are written as the texts "inf", "-inf" and "nan".
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from narrowgauge.analysis.attention_pictures import AttentionPictures
from narrowgauge.analysis.records import Analysis
from narrowgauge.errors import ReportError

VERSION = 1

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_PLAIN = {str: "a text", bool: "true or false", int: "an integer"}


def analysis_to_json(analysis: Analysis) -> str:
    """Write an analysis as JSON text, one line per record; every number survives exactly."""
    return _to_json(analysis)


def pictures_to_json(pictures: AttentionPictures) -> str:
    """Write pictures of attention as JSON text, one line per picture."""
    return _to_json(pictures)


def _to_json(record: Analysis | AttentionPictures) -> str:
    parts = {"version": VERSION} | {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {_lines(part)}" for name, part in parts.items()) + "\n}\n"


def analysis_from_json(text: str, *, source: str = "analysis") -> Analysis:
    """Read an analysis, the inverse of `analysis_to_json`.

    Args:
        text: the JSON text.
        source: file name for the error message.

    Raises:
        ReportError: if it is not JSON, of another version, or a key or a value is not what it should be; the
            message names it.
    """
    return typing.cast(Analysis, _from_json(text, Analysis, source, "an analysis"))


def pictures_from_json(text: str, *, source: str = "attention") -> AttentionPictures:
    """Read pictures of attention, the inverse of `pictures_to_json`; arguments and errors as `analysis_from_json`."""
    return typing.cast(AttentionPictures, _from_json(text, AttentionPictures, source, "pictures of attention"))


def _from_json(text: str, kind: type, source: str, what: str) -> Any:
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ReportError(f"expected an object, got {_short(record)}")
        version = record.pop("version", None)
        if version != VERSION or isinstance(version, bool):
            raise ReportError(f"expected version {VERSION}, got {_short(version)}")
        return _read(record, kind, "the file")
    except (ReportError, ValueError, RecursionError) as error:
        raise ReportError(f"{source}: expected {what} in JSON: {error}; analyze the network again") from None


def _lines(part: Any) -> str:
    """JSON with one item of a list or an object a line."""
    value = _write(part)
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
    if isinstance(value, dict) and value:
        items = (f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
        return "{\n" + ",\n".join(items) + "\n  }"
    return json.dumps(value)


def _write(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _write(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _write(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        plain = all(type(item) is float for item in value) and all(map(math.isfinite, value))
        return list(value) if plain else [_write(item) for item in value]  # most are long rows of plain numbers
    if isinstance(value, np.generic):
        return _write(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


@functools.cache
def _fields(record: type) -> dict[str, tuple[Any, bool]]:
    """Name -> type and whether it must be there."""
    hints = typing.get_type_hints(record)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(record)
    }


def _read(value: Any, kind: Any, place: str) -> Any:
    """Turn a JSON value into what a record's field is typed as."""
    if dataclasses.is_dataclass(kind):
        return _read_record(value, typing.cast(type, kind), place)
    if kind is float:
        return _read_float(value, place)
    if kind in _PLAIN:
        if type(value) is not kind:
            raise ReportError(f"{place}: expected {_PLAIN[kind]}, got {_short(value)}")
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _read_tuple(value, arguments, place)
    if origin is dict:
        return _read_dict(value, arguments[1], place)
    if origin is typing.Literal:
        return _read_literal(value, arguments, place)
    if origin is types.UnionType:  # of a type and None
        return None if value is None else _read(value, arguments[0], place)
    raise TypeError(f"{place}: no way to read {kind}")


def _read_record(value: Any, record: type, place: str) -> Any:
    if not isinstance(value, dict):
        raise ReportError(f"{place}: expected an object, got {_short(value)}")
    fields = _fields(record)
    unknown = sorted(value.keys() - fields.keys())
    if unknown:
        raise ReportError(f"{place}: unknown key {unknown[0]!r}")
    absent = [name for name, (_, needed) in fields.items() if needed and name not in value]
    if absent:
        raise ReportError(f"{place}: key {absent[0]!r} is missing")
    return record(**{name: _read(item, fields[name][0], f"{place}, {name}") for name, item in value.items()})


def _read_float(value: Any, place: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportError(f"{place}: expected a number, got {_short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ReportError(f"{place}: expected a number, got one of {len(str(value))} digits") from None


def _read_tuple(value: Any, arguments: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ReportError(f"{place}: expected a list, got {_short(value)}")
    if arguments[-1] is Ellipsis:
        return tuple(_read(item, arguments[0], f"{place}, item {number}") for number, item in enumerate(value, 1))
    if len(value) != len(arguments):
        raise ReportError(f"{place}: expected {len(arguments)} items, got {len(value)}")
    return tuple(_read(item, kind, place) for item, kind in zip(value, arguments, strict=True))


def _read_dict(value: Any, kind: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReportError(f"{place}: expected an object, got {_short(value)}")
    return {key: _read(item, kind, f"{place}, {key!r}") for key, item in value.items()}


def _read_literal(value: Any, texts: tuple[str, ...], place: str) -> str:
    if not isinstance(value, str) or value not in texts:
        raise ReportError(f"{place}: expected {' or '.join(map(repr, texts))}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    """A JSON value for a message."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
