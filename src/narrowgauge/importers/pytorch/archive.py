"""Read a `.pt2` file (torch.export.save) without running anything that it brings along.

`torch.export.load` trusts its file: example inputs and some tensors are unpickled without `weights_only`, sizes are
expressions that sympy evaluates as Python, and operators are any attribute of the package `torch`. So the file is taken
apart here: a zip archive of JSON records and raw tensors. What could run code is dropped where nothing needs it
(example inputs, guards, stack traces) and refused where something does, and a new archive of what was checked is what
PyTorch loads. Nothing is unpickled.

Layout: `torch/export/pt2_archive/constants.py`, `torch/_export/serde/schema.py`.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

from narrowgauge.errors import ModelError
from narrowgauge.importers.pytorch.operators import register
from narrowgauge.importers.pytorch.silence import silence

_SAVE_AGAIN = "save the program again with torch.export.save"

_NO_NETWORK = (
    "which has no network that can be read without running code from the file; build the module in Python, "
    "module.load_state_dict(torch.load(path, weights_only=True)), and give the module instead of the path"
)

_MODEL = re.compile(r"models/([^/]+)\.json")
_STORED_TENSOR = re.compile(r"(weight|tensor)_\d+")

_LARGEST_EXPANSION = 2**24
"""Elements that a tensor may have beyond those that the file stores: strides of zero repeat them, sizes are any."""

_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision|torchao)\.([A-Za-z_]\w*)(\.[A-Za-z_]\w*)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt|pow)"
    r"|torch\.sym_(ite|max|min|not|float|int|sum|sqrt|fresh_size)|torch\._sym_sqrt"
)
"""Operators that a network is made of; all of them only compute."""

_BIT_OPERATORS = frozenset({"__and__", "__or__", "__xor__", "__lshift__", "__rshift__"})
_FILE_OPERATORS = frozenset({"from_file"})
"""Operators of aten that open files."""

_CONTAINERS = frozenset(
    {
        None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "collections.namedtuple",
        "collections.deque",
    }
)  # fmt: skip
"""What inputs and outputs may be nested in. Reading other kinds (defaultdict, classes) imports what they name."""

_EXPRESSION_FUNCTIONS = frozenset(
    {
        "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "floor", "ceiling", "Eq",
        "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan",
        "GreaterThan", "And", "Or", "Not", "Piecewise", "ExprCondPair", "Tuple", "FloorDiv", "ModularIndexing", "Where",
        "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural",
        "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat",
        "Identity",
    }
)  # fmt: skip
"""sympy's and PyTorch's functions of which expressions for sizes consist."""

_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop,
)  # fmt: skip
"""Arithmetic without attributes, subscripts, functions of its own or comprehensions."""

_LONGEST_EXPRESSION = 10_000
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_LARGEST_POWER = 2**24
"""Product of all exponents of an expression: nested powers of plain numbers are computed when they are read."""


def read_program(path: Path) -> Any:
    """Read an exported program.

    Returns:
        A torch.export.ExportedProgram on the processor, without example inputs.

    Raises:
        ModelError: There is no such file, it is no exported program, damaged, of another version, or holds what would
            have to be run to be read; the message says what.
    """
    import torch

    records = _records(path)
    archive = _checked_archive(records, path)
    register()  # programs with quantized_decomposed operators need them to be known
    try:
        with silence():
            return torch.export.load(archive)
    except Exception as error:  # the reader of a damaged or foreign program raises what it likes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"{path}: expected a program that PyTorch {torch.__version__} reads, but reading it failed: {reason}; "
            f"{_SAVE_AGAIN} of this version"
        ) from error


def refuse_weights(path: Path, kind: str) -> NoReturn:
    """Say what to do with a file that has weights or pickled objects, but no network.

    Raises:
        ModelError: Always.
    """
    raise ModelError(f"{path}: expected an exported program (.pt2, torch.export.save), got {kind}, {_NO_NETWORK}")


def _records(path: Path) -> dict[str, bytes]:
    """Read all records of a zip archive that stores them as they are, by their names behind the common folder."""
    if not path.exists():
        raise ModelError(f"{path}: no such file; give the path of a .pt2 file")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; expected a .pt2 file")
    try:
        return _zip_records(path)
    except zipfile.BadZipFile as error:
        with path.open("rb") as file:
            head = file.read(16)
        if head[:1] == b"\x80":
            refuse_weights(path, "a Python pickle (a state dict or module saved by an old PyTorch)")
        if head[8:10] == b'{"':
            refuse_weights(path, "safetensors")
        what = "truncated or damaged" if head[:2] == b"PK" else "no zip archive"
        raise ModelError(
            f"{path}: expected an exported program (.pt2), but the file is {what}; {_SAVE_AGAIN}"
        ) from error
    except (OSError, EOFError, zlib.error, RuntimeError, NotImplementedError, ValueError) as error:
        raise ModelError(f"{path}: expected an exported program (.pt2), but reading it failed: {error}") from error


def _zip_records(path: Path) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename.partition("/")[2] for entry in entries}
        _refuse_other_archives(path, names)
        for entry in entries:
            name = entry.filename.partition("/")[2]
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ModelError(
                    f"{path}: expected records that are stored as they are, got {name!r} compressed; {_SAVE_AGAIN}"
                )
            if name in records:
                raise ModelError(f"{path}: expected one record {name!r}, got two; {_SAVE_AGAIN}")
            records[name] = archive.read(entry)
    return records


def _refuse_other_archives(path: Path, names: set[str]) -> None:
    if "archive_format" in names:
        return
    if any(name.startswith("code/") for name in names):
        refuse_weights(path, "a TorchScript archive")
    if "data.pkl" in names:
        refuse_weights(path, "a state dict or a pickled module (torch.save)")
    raise ModelError(
        f"{path}: expected an exported program (.pt2), got a zip archive without the record archive_format: another "
        f"kind of file, or saved by PyTorch 2.7 or older; {_SAVE_AGAIN} of PyTorch 2.8 or newer"
    )


def _checked_archive(records: dict[str, bytes], path: Path) -> io.BytesIO:
    """Write a new archive of what was checked, with one program, `model`."""
    for name, expected in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        if records.get(name, expected).strip() != expected:
            raise ModelError(f"{path}: expected {name} {expected.decode()}, got {records[name][:20]!r}; {_SAVE_AGAIN}")
    if any(name.startswith("data/aotinductor/") for name in records):
        raise ModelError(
            f"{path}: expected an exported program, got compiled code (AOTInductor), which has no network to read; "
            f"{_SAVE_AGAIN}"
        )
    models = [match[1] for match in map(_MODEL.fullmatch, records) if match is not None]
    if len(models) != 1:
        raise ModelError(f"{path}: expected one program, got {len(models)}; {_SAVE_AGAIN}, one in each file")
    (model,) = models
    program = _sanitised(_json(records, f"models/{model}.json", path), path)
    program["guards_code"] = []
    kept = {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
        ".data/version": b"6\n",
        "models/model.json": json.dumps(program).encode(),
        "data/sample_inputs/model.pt": b"",
    }
    for folder, kind in (("data/weights", "weights"), ("data/constants", "constants")):
        config, tensors = _tensors(records, folder, f"{model}_{kind}_config.json", path)
        kept |= tensors
        kept[f"{folder}/model_{kind}_config.json"] = json.dumps(config).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in kept.items():
            archive.writestr(f"model/{name}", data)
    buffer.seek(0)
    return buffer


def _json(records: dict[str, bytes], name: str, path: Path) -> Any:
    if name not in records:
        raise ModelError(f"{path}: expected a record {name}, but it is missing; {_SAVE_AGAIN}")
    try:
        parsed = json.loads(records[name])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {name} is damaged: {error}; {_SAVE_AGAIN}") from error
    if not isinstance(parsed, dict):
        raise ModelError(f"{path}: expected an object in {name}, got {type(parsed).__name__}; {_SAVE_AGAIN}")
    return parsed


def _tensors(
    records: dict[str, bytes], folder: str, config_name: str, path: Path
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Check the table of weights or constants, and take the records that it names."""
    config = _json(records, f"{folder}/{config_name}", path)
    entries = config.get("config")
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: {folder}/{config_name} has no table of tensors; {_SAVE_AGAIN}")
    taken: dict[str, bytes] = {}
    for name, entry in entries.items():
        meta = entry.get("tensor_meta") if isinstance(entry, dict) else None
        record = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(record, str) or not _STORED_TENSOR.fullmatch(record) or entry.get("use_pickle"):
            raise ModelError(
                f"{path}: {name!r} is stored as a pickled object, which runs code when it is read; expected plain "
                "tensors; replace it by one and save the program again, or give the program itself"
            )
        stored = f"{folder}/{record}"
        if stored not in records:
            raise ModelError(f"{path}: the tensor {name!r} is missing: expected a record {stored}; {_SAVE_AGAIN}")
        _check_size(meta, records[stored], name, path)
        taken[stored] = records[stored]
    return {"config": _on_processor(entries)}, taken


def _check_size(meta: Any, stored: bytes, name: str, path: Path) -> None:
    try:
        sizes = [int(size["as_int"]) for size in meta["sizes"]]
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: the tensor {name!r} has no sizes; {_SAVE_AGAIN}") from error
    if min(sizes, default=0) < 0 or math.prod(sizes) > len(stored) + _LARGEST_EXPANSION:
        raise ModelError(
            f"{path}: the tensor {name!r} is of shape {sizes}, but {len(stored)} bytes are stored; {_SAVE_AGAIN}"
        )


def _sanitised(value: Any, path: Path) -> Any:
    """Check expressions, operators and structures of a program, and leave out what no network needs."""
    try:
        return _without_code(value, path)
    except RecursionError as error:
        raise ModelError(f"{path}: the program is nested too deep to be one; {_SAVE_AGAIN}") from error


def _without_code(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return [_without_code(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"type", "index"}:
        return {"type": "cpu", "index": None}
    kept = {}
    for key, item in value.items():
        if key == "expr_str":
            _check_expression(item, path)
        elif key in ("target", "as_operator"):
            _check_operator(item, path)
        elif key in ("in_spec", "out_spec"):
            _check_structure(item, path)
        elif key.startswith(("as_custom_obj", "as_opaque")):
            raise ModelError(
                f"{path}: the program holds Python objects, which have no place in a network; leave them out"
            )
        elif key == "metadata" and isinstance(item, dict):
            item = {name: text for name, text in item.items() if name == "nn_module_stack"}  # noqa: PLW2901
        kept[key] = _without_code(item, path)
    return kept


def _on_processor(value: Any) -> Any:
    """Move tensors that were stored from a graphics processor to the processor."""
    if isinstance(value, list):
        return [_on_processor(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"type", "index"}:
        return {"type": "cpu", "index": None}
    return {key: _on_processor(item) for key, item in value.items()}


def _check_operator(target: Any, path: Path) -> None:
    match = _OPERATOR.fullmatch(target) if isinstance(target, str) else None
    names = target.split(".") if match else []
    hidden = [name for name in names if name.startswith("__") and name not in _BIT_OPERATORS]
    if match is None or hidden or names[-1] in _FILE_OPERATORS or match[2] in _FILE_OPERATORS:
        raise ModelError(
            f"{path}: expected operators of PyTorch itself, got {str(target)[:80]!r}; replace it by standard ones "
            "and export the program again"
        )


def _check_structure(text: Any, path: Path) -> None:
    """Check how inputs or outputs are nested."""
    try:
        kinds = _kinds(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the structure of inputs or outputs is damaged: {error}; {_SAVE_AGAIN}") from error
    foreign = [kind for kind in kinds if kind not in _CONTAINERS]
    if foreign:
        raise ModelError(
            f"{path}: expected inputs and outputs in tuples, lists and dicts, got {str(foreign[0])[:80]!r}; export a "
            "module that takes and returns these"
        )


def _kinds(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [kind for item in value for kind in _kinds(item)]
    if not isinstance(value, dict):
        return []
    own = [value["type"]] if "children_spec" in value else []
    return own + _kinds(value.get("children_spec"))


def _check_expression(text: Any, path: Path) -> None:
    """Refuse what is not arithmetic of sizes; the text would be evaluated as Python."""
    try:
        if not isinstance(text, str) or len(text) > _LONGEST_EXPRESSION:
            raise ValueError("too long")
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
        for node in nodes:
            _check_part(node)
        if math.prod(_exponent(node) for node in nodes) > _LARGEST_POWER:
            raise ValueError("powers too large")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"{path}: expected arithmetic of sizes, got the expression {str(text)[:80]!r}: {error}; {_SAVE_AGAIN}"
        ) from error


def _check_part(node: ast.AST) -> None:
    if not isinstance(node, _EXPRESSION_NODES):
        raise ValueError(f"{type(node).__name__} is no arithmetic")
    if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _EXPRESSION_FUNCTIONS):
        raise ValueError("a call of no known function")
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and not node.value.isidentifier():
            raise ValueError("a text that is no name")
        if not isinstance(node.value, str | bool | int | float):
            raise ValueError("a constant that is no number")
    if isinstance(node, ast.Name) and node.id.startswith("__"):
        raise ValueError("a name of the language")


def _exponent(node: ast.AST) -> int:
    """Return by how much a node raises: 1 for all but powers and shifts."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        power = node.right
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS:
        if len(node.args) != 2:
            raise ValueError("a power of other than two arguments")
        power = node.args[1]
    else:
        return 1
    if isinstance(power, ast.Call) and isinstance(power.func, ast.Name) and power.func.id == "Integer" and power.args:
        power = power.args[0]
    if isinstance(power, ast.UnaryOp):
        power = power.operand
    if not isinstance(power, ast.Constant) or not isinstance(power.value, int):
        raise ValueError("a power that is no number")
    return max(1, abs(power.value))
