"""Open Keras files without trusting them.

What a file's configuration names is checked before Keras sees it (`keras_config.py`), HDF5 files may not point to other
files, and stored sizes are checked before anything is allocated.
"""

from __future__ import annotations

import importlib
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from narrowgauge.errors import MissingDependencyError, ModelError
from narrowgauge.importers.keras_config import LARGEST_CONFIG_BYTES, checked_config, repaired_config

_INSTALL = "pip install 'narrowgauge[keras]'"

_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"

_EXPANSION = 100
"""Compressed weights may not be larger than this many times the file: trained weights hardly compress at all."""

_LONGEST_REASON = 300


def required(package: str) -> Any:
    """Import an optional package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(f"reading Keras networks needs {package}: {_INSTALL}") from error


def open_network(keras: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """Load a network from a file, whichever of the two formats it is.

    Args:
        keras: the package, imported with its torch backend.
        path: of the file.

    Returns:
        A keras.Model, and what was repaired, one sentence each.

    Raises:
        ModelError: the file is none of Keras', damaged, incomplete, or carries code.
        MissingDependencyError: h5py is not installed.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {kind}; expected a .keras or .h5 file, as Keras' `model.save` writes")
    try:
        with path.open("rb") as file:
            head = file.read(len(_HDF5))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if head == _HDF5:
        return _opened_hdf5(keras, path)
    if head.startswith(_ZIP):
        return _opened_archive(keras, path), ()
    raise ModelError(
        f"{path}: expected a Keras file (a zip archive or HDF5), but it begins with {head!r}: not one, or damaged"
    )


def _opened_archive(keras: Any, path: Path) -> Any:
    """Load the format of Keras 3: a zip archive of `config.json` and `model.weights.h5`."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
            checked_config(archive.read("config.json"), str(path), registered=_registered(keras))
            for member in archive.namelist():
                if member.endswith(".h5"):
                    with archive.open(member) as stored:
                        _check_hdf5(io.BytesIO(stored.read()), path)
    except ModelError:
        raise
    except Exception as error:  # zipfile, zlib and h5py have many ways to say that something is broken
        raise _damaged(path, error) from error
    if path.suffix == ".keras":
        return _loaded(keras, path, path)
    with tempfile.TemporaryDirectory() as folder:  # Keras goes by the suffix
        copy = Path(folder) / "network.keras"
        copy.symlink_to(path.absolute())
        return _loaded(keras, copy, path)


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    members = {member.filename: member for member in archive.infolist()}
    if "config.json" not in members:
        raise ModelError(f"{path}: expected the archive that Keras writes, with config.json in it, but it has none")
    if not any(name.endswith(".h5") for name in members):
        raise ModelError(f"{path}: there are no weights (model.weights.h5) in the archive; save the network again")
    if members["config.json"].file_size > LARGEST_CONFIG_BYTES:
        size = members["config.json"].file_size
        raise ModelError(f"{path}: its config.json has {size} bytes; expected at most {LARGEST_CONFIG_BYTES}")
    _check_expansion(sum(member.file_size for member in members.values()), path)


def _check_expansion(stored_bytes: int, path: Path) -> None:
    size = path.stat().st_size
    if stored_bytes > _EXPANSION * size + LARGEST_CONFIG_BYTES:
        raise ModelError(
            f"{path} has {size} bytes but says that it holds {stored_bytes}: it is damaged, or made to fill the memory"
        )


def _opened_hdf5(keras: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """Load the format of Keras 1 and 2: one HDF5 file, the configuration in an attribute.

    What is loaded is a copy of the configuration, repaired, and of the weights; optimizer and training are left out.
    """
    h5py = required("h5py")
    try:
        _check_hdf5(path, path)
        with h5py.File(path) as file:
            text = file.attrs.get("model_config")
            if text is None or "model_weights" not in file:
                raise ModelError(
                    f"{path} holds no network, only arrays ({', '.join(sorted(file)) or 'none'}): weights by "
                    "themselves do not say what to compute; save the whole model with `model.save`"
                )
            config, notes = repaired_config(checked_config(text, str(path), registered=_registered(keras)))
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "network.h5"
                with h5py.File(copy, "w") as kept:
                    kept.attrs["model_config"] = json.dumps(config)
                    for attribute in {"keras_version", "backend"} & set(file.attrs):
                        kept.attrs[attribute] = file.attrs[attribute]
                    file.copy("model_weights", kept)
                return _loaded(keras, copy, path), notes
    except ModelError:
        raise
    except Exception as error:  # h5py has many ways to say that something is broken
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is truncated or damaged ({first_line(error)}); copy or save it again")


def _check_hdf5(stored: Path | io.BytesIO, path: Path) -> None:
    """Refuse links that leave the file, and arrays whose declared size is more than the file can hold."""
    h5py = required("h5py")
    with h5py.File(stored) as file:
        total = 0
        groups = [file]
        seen = set()
        while groups:
            group = groups.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ModelError(f"{path}: {group.name}/{name} points elsewhere, which Keras never writes; refused")
                item = group[name]
                if isinstance(item, h5py.Group):
                    if item.id not in seen:
                        seen.add(item.id)
                        groups.append(item)
                    continue
                if item.is_virtual or item.external:
                    raise ModelError(f"{path}: the numbers of {item.name} are in another file; refused")
                total += item.nbytes
        _check_expansion(total, path)


def _loaded(keras: Any, copy: Path, path: Path) -> Any:
    """Let Keras load a checked file, first without memory for numbers.

    On torch's device `meta` tensors have a shape and nothing else, so that a damaged configuration (a layer of 10**12
    units) shows by weights that do not fit before anything is allocated.
    """
    try:
        with keras.device("meta"):
            keras.saving.load_model(copy, compile=False, safe_mode=True)
        with keras.device("cpu"):
            return keras.saving.load_model(copy, compile=False, safe_mode=True)
    except Exception as error:  # whatever Keras trips over, the file is to blame
        raise ModelError(f"{path}: Keras cannot build this network: {first_line(error)}") from error


def _registered(keras: Any) -> frozenset[str]:
    """Return the names of the classes that the caller's own code registered."""
    return frozenset(keras.saving.get_custom_objects())


def first_line(error: BaseException) -> str:
    """Return what is wrong in one line: the innermost cause, without the object that Keras prints behind it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
