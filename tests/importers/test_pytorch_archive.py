"""Files are not trusted: nothing that a .pt2 file brings along runs, and damage is one message."""

import io
import json
import pickle  # noqa: TID251 - to make the files that must be refused
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from narrowgauge.errors import ModelError  # noqa: E402 - behind the skip
from narrowgauge.importers.pytorch import convert  # noqa: E402
from narrowgauge.importers.pytorch.archive import read_program  # noqa: E402

Records = dict[str, bytes]


class Network(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        self.offset = torch.ones(3)

    def forward(self, x: Any) -> Any:
        return {"scores": self.fc(x).reshape(x.shape[0] * 1, 3) + self.offset}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("pt2") / "network.pt2"
    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(Network().eval(), (torch.ones(2, 4),), dynamic_shapes=dynamic), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(records: Records, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


def model_record(records: Records) -> str:
    return next(name for name in records if name.endswith("models/model.json"))


def changed(records: Records, old: str, new: str) -> Records:
    """Replace text in the record of the program."""
    name = model_record(records)
    text = records[name].decode()
    assert old in text
    return {**records, name: text.replace(old, new).encode()}


class Mischief:
    """What a pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_programs_are_read_without_their_example_inputs(records: Records, tmp_path: Path) -> None:
    sample = next(name for name in records if "sample_inputs" in name)
    touched = tmp_path / "touched"
    buffer = io.BytesIO()
    torch.save((Mischief(touched),), buffer)
    path = written({**records, sample: buffer.getvalue()}, tmp_path / "network.pt2")
    program = read_program(path)
    assert program.example_inputs is None
    assert not touched.exists()
    torch.manual_seed(0)
    expected = Network()(x := torch.randn(5, 4))["scores"]
    np.testing.assert_allclose(program.module()(x)["scores"].detach(), expected.detach(), rtol=1e-6, atol=1e-6)


def test_pickled_tensors_and_objects_are_refused_before_they_are_read(records: Records, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    danger = pickle.dumps(Mischief(touched))
    name = next(name for name in records if name.endswith("model_constants_config.json"))
    config = json.loads(records[name])
    (entry,) = config["config"].values()
    folder = name.rpartition("/")[0]
    for change in ({"use_pickle": True}, {"path_name": "custom_obj_0"}, {"path_name": "opaque_obj_0"}):
        bad = {"config": {"offset": entry | change}}
        record = f"{folder}/{bad['config']['offset']['path_name']}"
        path = written({**records, record: danger, name: json.dumps(bad).encode()}, tmp_path / "bad.pt2")
        with pytest.raises(ModelError, match="'offset' is stored as a pickled object"):
            read_program(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('pathlib').Path('touched').touch()",
        "(lambda: 1)()",
        "Symbol('s77').__class__",
        "[Symbol('x') for x in (1, 2)]",
        "eval('1')",
        "9**9**9",
        "Pow(9, Pow(9, 9))",
        "Pow(Pow(Pow(9, 4096), 4096), 4096)",
        "1 << 10**9",
        "1" * 20000,
        "Symbol('a b')",
        "(",
        "s77[0]",
    ],
)
def test_expressions_that_are_no_arithmetic_are_refused(records: Records, expression: str, tmp_path: Path) -> None:
    name = model_record(records)
    program = json.loads(records[name])
    value = next(iter(program["graph_module"]["graph"]["sym_int_values"].values()))
    value["as_expr"]["expr_str"] = expression
    path = written({**records, name: json.dumps(program).encode()}, tmp_path / "bad.pt2")
    with pytest.raises(ModelError, match="expected arithmetic of sizes") as caught:
        read_program(path)
    assert len(str(caught.value)) < 600


def test_arithmetic_of_sizes_is_read(records: Records, tmp_path: Path) -> None:
    size = "Symbol('s77', positive=True, integer=True)"
    bad = changed(records, json.dumps(size)[1:-1], f"{size} * Pow({size}, 2) // {size} ** 2")
    assert read_program(written(bad, tmp_path / "network.pt2")).range_constraints


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load", "torch.ops.load_library", "torch.ops.aten.from_file.default", "torch.ops.aten.__class__",
        "torch.ops.mine.operator.default", "os.system", "#mine:x", "_operator.methodcaller", "math.__loader__",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation", 7,
    ],
)  # fmt: skip
def test_operators_that_are_none_of_a_network_are_refused(records: Records, target: Any, tmp_path: Path) -> None:
    name = model_record(records)
    program = json.loads(records[name])
    program["graph_module"]["graph"]["nodes"][0]["target"] = target
    path = written({**records, name: json.dumps(program).encode()}, tmp_path / "bad.pt2")
    with pytest.raises(ModelError, match="expected operators of PyTorch itself"):
        read_program(path)


def test_guards_are_dropped_and_structures_that_import_are_refused(records: Records, tmp_path: Path) -> None:
    name = model_record(records)
    program = json.loads(records[name])
    program["guards_code"] = ["__import__('os').abort()"]
    path = written({**records, name: json.dumps(program).encode()}, tmp_path / "guards.pt2")
    read_program(path).module()
    bad = changed(records, r"builtins.dict", r"collections.defaultdict")
    with pytest.raises(ModelError, match=r"tuples, lists and dicts, got 'collections\.defaultdict'"):
        read_program(written(bad, tmp_path / "bad.pt2"))


def test_tensors_larger_than_what_is_stored_are_refused_before_they_are_made(records: Records, tmp_path: Path) -> None:
    name = next(name for name in records if name.endswith("model_weights_config.json"))
    for sizes in ([2**40], [2**20, 2**20], [-1], [None]):
        config = json.loads(records[name])
        config["config"]["fc.bias"]["tensor_meta"]["sizes"] = [{"as_int": size} for size in sizes]
        path = written({**records, name: json.dumps(config).encode()}, tmp_path / "bad.pt2")
        with pytest.raises(ModelError, match=r"'fc\.bias'"):
            read_program(path)


def test_stored_on_a_graphics_processor_it_is_read_on_the_processor(records: Records, tmp_path: Path) -> None:
    moved = {
        name: data.replace(b'"type": "cpu", "index": null', b'"type": "cuda", "index": 0')
        for name, data in records.items()
    }
    assert moved != records
    program = read_program(written(moved, tmp_path / "cuda.pt2"))
    assert all(tensor.device.type == "cpu" for tensor in program.state_dict.values())


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def test_damaged_files_are_one_message(records: Records, tmp_path: Path) -> None:
    whole = written(records, tmp_path / "whole.pt2").read_bytes()
    generator = np.random.default_rng(0)
    damaged = [cut(share)(whole) for share in (0.0, 0.001, 0.3, 0.6, 0.9, 0.999)]
    for _ in range(12):
        flipped = bytearray(whole)
        for place in generator.integers(len(whole), size=8):
            flipped[place] ^= 1 << int(generator.integers(8))
        damaged.append(bytes(flipped))
    messages = [refusal(data, tmp_path / "damaged.pt2") for data in damaged]
    assert all("\n" not in message for message in messages)
    assert sum("damaged.pt2: " in message for message in messages) >= 12  # a bit may fall on what is not read


def refusal(data: bytes, path: Path) -> str:
    """Return the message that refuses a file, "" if it is read."""
    path.write_bytes(data)
    try:
        read_program(path)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("missing", ["models/model.json", "model_weights_config.json", "weight_0", "archive_format"])
def test_missing_records_are_named(records: Records, missing: str, tmp_path: Path) -> None:
    rest = {name: data for name, data in records.items() if not name.endswith(missing)}
    with pytest.raises(ModelError, match="expected"):
        read_program(written(rest, tmp_path / "bad.pt2"))


def test_compressed_doubled_and_compiled_records_are_refused(records: Records, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="compressed"):
        read_program(written(records, tmp_path / "bad.pt2", zipfile.ZIP_DEFLATED))
    twice = written(records, tmp_path / "twice.pt2")
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(model_record(records), b"{}")
    with pytest.raises(ModelError, match="got two"):
        read_program(twice)
    compiled = {**records, "network/data/aotinductor/model/model.so": b"\x7fELF"}
    with pytest.raises(ModelError, match="compiled code"):
        read_program(written(compiled, tmp_path / "bad.pt2"))


def test_files_without_a_network_say_what_to_do(tmp_path: Path) -> None:
    module = Network()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    torch.save(module.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "x.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a": {}}')
    (tmp_path / "text.pt2").write_text("not a network")
    for name, kind in (("weights.pt", "state dict"), ("old.pth", "pickle"), ("x.safetensors", "safetensors")):
        with pytest.raises(ModelError, match=kind) as caught:
            convert(tmp_path / name)
        assert "load_state_dict(torch.load(path, weights_only=True))" in str(caught.value)
    with pytest.raises(ModelError, match="no zip archive"):
        convert(tmp_path / "text.pt2")
    with pytest.raises(ModelError, match="no such file"):
        convert(tmp_path / "nothing.pt2")
    with pytest.raises(ModelError, match="folder"):
        convert(tmp_path)


def test_a_program_under_another_suffix_is_read_by_what_it_is(records: Records, tmp_path: Path) -> None:
    path = written(records, tmp_path / "network.pt2")
    shutil.copy(path, other := tmp_path / "network.pt")
    assert read_program(other).state_dict.keys() == read_program(path).state_dict.keys()
