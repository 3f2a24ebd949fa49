"""Exported programs run by name, ours and others', and what is refused is one line."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrowgauge.errors import MissingDependencyError, ModelError, NarrowgaugeError, RuntimeFailure
from narrowgauge.runtimes.engines import open_program as open_by_suffix
from narrowgauge.runtimes.pytorch import compile_program, open_program
from tests.planning.networks import normal

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

X = normal(2, 4)


class Sum(torch.nn.Module):
    """Two inputs, one of integers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: Any, k: Any) -> Any:
        return self.layer(x) + k.unsqueeze(1), k * 2


class Named(torch.nn.Module):
    def forward(self, pair: dict[str, Any], *, scale: Any) -> dict[str, Any]:
        return {"sum": pair["one"] + pair["two"], "scaled": [pair["one"] * scale]}


def save(module: torch.nn.Module, path: Path, *arguments: Any, dynamic: Any = None, **named: Any) -> Path:
    program = torch.export.export(module.eval(), arguments, named, dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = torch.export.Dim.DYNAMIC
    torch.manual_seed(0)
    return save(
        Sum(), tmp_path / "m.pt2", torch.ones(3, 4), torch.ones(3, dtype=torch.int64), dynamic=({0: rows}, {0: rows})
    )


@pytest.mark.parametrize("rows", [2, 7])
def test_a_program_of_others_has_its_own_names(path: Path, rows: int) -> None:
    program = open_program(path, threads=1)
    assert [str(spec) for spec in program.inputs] == ["'x' (float32, ? x 4)", "'k' (int64, ?)"]
    assert program.outputs == ("add", "mul")
    torch.manual_seed(0)
    feed = {"k": np.arange(rows), "x": normal(rows, 4)}
    expected = Sum()(torch.from_numpy(feed["x"]), torch.from_numpy(feed["k"]))
    found = program.run(feed)
    assert list(found) == ["add", "mul"]
    for name, tensor in zip(found, expected, strict=True):
        np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=1e-6)


def test_inputs_and_outputs_in_dicts_and_lists(tmp_path: Path) -> None:
    pair = {"one": torch.ones(2), "two": torch.ones(2)}
    program = open_program(save(Named(), tmp_path / "m.pt2", pair, scale=torch.ones(())))
    feed = {spec.name: np.full([size or 1 for size in spec.shape], 3, np.float32) for spec in program.inputs}
    assert len(feed) == 3
    assert [array.tolist() for array in program.run(feed).values()] == [[6, 6], [9, 9]]


def test_the_engine_of_such_files(path: Path) -> None:
    assert open_by_suffix(path).outputs == ("add", "mul")
    assert open_by_suffix(path, runtime="torch").outputs == ("add", "mul")


def test_threads_are_those_of_a_run_only(path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        open_program(path, threads=1).run({"x": X, "k": np.ones(2, np.int64)})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_results_of_a_run_outlive_the_next_and_carry_no_gradient(path: Path) -> None:
    program = open_program(path, threads=1)
    first = program.run({"x": X, "k": np.ones(2, np.int64)})["add"]
    kept = first.copy()
    program.run({"x": -X, "k": np.ones(2, np.int64)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "feed",
    [{"x": X}, {"x": normal(2, 5), "k": np.ones(2, np.int64)}, {"x": X, "k": np.ones(3, np.int64)}],
    ids=["nothing", "another width", "other rows"],
)  # fmt: skip
def test_a_feed_that_does_not_fit_is_one_line(path: Path, feed: dict[str, np.ndarray]) -> None:
    with pytest.raises(RuntimeFailure, match="PyTorch could not run the network: ") as failure:
        open_program(path, threads=1).run(feed)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.6, 0.99])
def test_a_file_cut_short_is_refused(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelError, match=r"m\.pt2"):
        open_program(path)


def test_changed_bytes_end_in_an_error_of_ours_or_a_network(path: Path) -> None:
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(10):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert open_program(path).outputs
        except NarrowgaugeError:
            continue


@pytest.mark.parametrize("record", [b"[]", b"{", b'{"inputs": ["a"], "outputs": ["b"]}', b'{"inputs": 3}', b"\xff"])
def test_names_that_do_not_fit_are_left_alone(path: Path, record: bytes) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/extra/narrowgauge.json", record)
    assert open_program(path).outputs == ("add", "mul")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weights": Touch()}, tmp_path / "m.pt2")
    with pytest.raises(ModelError, match=r"m\.pt2"):
        open_program(tmp_path / "m.pt2")
    assert not (tmp_path / "ran").exists()


def test_without_pytorch_the_command_that_installs_it_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # Python's own way to mark a module as absent
    with pytest.raises(MissingDependencyError, match=r'pip install "narrowgauge\[torch\]"'):
        open_program(path)


def test_an_input_that_is_no_array_is_refused(tmp_path: Path) -> None:
    class Repeated(torch.nn.Module):
        def forward(self, x: Any, times: int) -> Any:
            return x * times

    with pytest.raises(RuntimeFailure, match="expected inputs that are arrays"):
        open_program(save(Repeated(), tmp_path / "m.pt2", torch.ones(2), 3))


@pytest.mark.slow
def test_a_compiled_program_computes_the_same(path: Path) -> None:
    feed = {"x": X, "k": np.ones(2, np.int64)}
    found, expected = compile_program(path, threads=1).run(feed), open_program(path, threads=1).run(feed)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
