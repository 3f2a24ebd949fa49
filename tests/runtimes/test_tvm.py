"""TVM as an engine: libraries by name, threads, and files that are damaged, foreign or for another processor."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs TVM: pip install 'narrowgauge[tvm]'")

from narrowgauge.errors import RuntimeFailure
from narrowgauge.exporters.formats import FORMATS
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import load
from narrowgauge.runtimes.engines import open_program
from tests.exporters.making import export
from tests.planning.networks import network, normal

SAMPLES = normal(8, 16, seed=1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of two layers with two inputs, one of them integers."""
    folder = tmp_path_factory.mktemp("tvm")
    model = load(network(
        "float[n, 16] data, int64[n, 2] chosen", "float[n, 2] picked, float[n, 4] all",
        "h = Gemm(data, w, b)  r = Relu(h)  all = Gemm(r, v)  picked = GatherElements<axis = 1>(all, chosen)",
        w=normal(16, 8), b=normal(8), v=normal(8, 4),
    )).model  # fmt: skip
    asked = export(model, {"data": SAMPLES, "chosen": np.zeros((8, 2), np.int64)}, "tvm")
    FORMATS["tvm"].write(asked, folder)
    feed = {"data": SAMPLES[:1], "chosen": np.array([[3, 1]])}
    np.savez(folder / "expected.npz", *open_session(asked.simulated, threads=1, simulate=True).run(None, feed))
    return folder / "model.tvm.so"


@pytest.fixture
def copied(library: Path, tmp_path: Path) -> Path:
    for path in (library, library.with_suffix(".json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / library.name


@pytest.mark.parametrize("threads", [1, 2, None])
def test_it_runs_by_name_with_any_threads(library: Path, threads: int | None) -> None:
    before = os.environ.get("TVM_BIND_THREADS")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    program = open_program(library, threads=threads)
    assert [(spec.name, spec.shape, str(spec.dtype)) for spec in program.inputs] == [
        ("data", (1, 16), "float32"), ("chosen", (1, 2), "int64"),
    ]  # fmt: skip
    assert program.outputs == ("picked", "all")
    found = program.run({"chosen": np.array([[3, 1]]), "data": SAMPLES[:1]})
    expected = np.load(library.with_name("expected.npz"))
    np.testing.assert_allclose(found["picked"], expected["arr_0"], rtol=1e-5)
    np.testing.assert_allclose(found["all"], expected["arr_1"], rtol=1e-5)
    assert os.environ.get("TVM_BIND_THREADS") == before
    assert cores is None or os.sched_getaffinity(0) == cores  # TVM ties its caller to a core unless it is told not to


def test_another_thread_may_run_it(library: Path) -> None:
    program = open_program(library, threads=1)
    feed = {"chosen": np.array([[0, 1]]), "data": SAMPLES[:1]}
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(program.run(feed)["all"]))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[0], program.run(feed)["all"])


def test_a_view_is_taken_as_it_reads(library: Path) -> None:
    """An array that is not contiguous, or starts in the middle of another."""
    program = open_program(library, threads=1)
    chosen = np.array([[0, 1]])
    wide = np.repeat(SAMPLES[:1], 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(
        program.run({"data": wide, "chosen": chosen})["all"],
        program.run({"data": SAMPLES[:1], "chosen": chosen})["all"],
    )


@pytest.mark.parametrize(
    ("feed", "said"),
    [
        ({"data": SAMPLES[:1]}, "the input 'chosen'.* is missing"),
        ({"data": SAMPLES[:2], "chosen": np.array([[0, 1]])}, r"input 'data' \(float32, 1 x 16\), got 2 x"),
        ({"data": SAMPLES[:1].astype(np.float64), "chosen": np.array([[0, 1]])}, "got float64"),
    ],
)  # fmt: skip
def test_a_feed_that_does_not_fit_is_refused(library: Path, feed: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(RuntimeFailure, match=said):
        open_program(library, threads=1).run(feed)


def test_a_hidden_instruction_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine may hide instructions that the model of its processor has."""
    from narrowgauge.runtimes import tvm as runtime

    flags = runtime._told_flags()
    if flags is None or "avx2" not in flags:
        pytest.skip("needs Linux on x86 with AVX2")
    hidden = frozenset(flag for flag in flags if not flag.startswith(("avx512", "avx_vnni", "amx")))
    monkeypatch.setattr(runtime, "_told_flags", lambda: hidden)
    _, features = runtime.this_processor()
    assert not any(feature.startswith("avx512") for feature in features)
    assert "avx2" in features


# --- damaged and foreign files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_library_that_is_cut_off_is_never_run(copied: Path, share: float) -> None:
    content = copied.read_bytes()
    copied.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RuntimeFailure, match="it is damaged, or another one"):
        open_program(copied)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_library_with_another_byte_is_never_run(copied: Path, share: float) -> None:
    content = bytearray(copied.read_bytes())
    content[int(len(content) * share)] ^= 255
    copied.write_bytes(content)
    with pytest.raises(RuntimeFailure, match="it is damaged, or another one"):
        open_program(copied)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_a_description_that_is_cut_off_is_refused(copied: Path, share: float) -> None:
    path = copied.with_suffix(".json")
    content = path.read_text()
    path.write_text(content[: int(len(content) * share)])
    with pytest.raises(RuntimeFailure, match=r"model\.tvm\.json: expected JSON"):
        open_program(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.pop("sha256"), "'sha256' is missing"),
        (lambda record: record.update(version=2), "version 1"),
        (lambda record: record.update(bytes="many"), "'bytes' to be of type int"),
        (lambda record: record.update(outputs=[1]), "'outputs' to hold values of type str"),
        (lambda record: record["inputs"][0].update(type="object"), "a type and a shape"),
        (lambda record: record["inputs"][0].update(shape=[-1, 16]), "a type and a shape"),
        (lambda record: record["features"].append("quantum"), "compiled for the processor .* lacks quantum"),
    ],
)
def test_a_description_of_something_else_is_refused(copied: Path, change: Callable[[Any], Any], said: str) -> None:
    path = copied.with_suffix(".json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(RuntimeFailure, match=said):
        open_program(copied)


def test_neither_file_goes_without_the_other(copied: Path, tmp_path: Path) -> None:
    copied.with_suffix(".json").unlink()
    with pytest.raises(RuntimeFailure, match=r"with model\.tvm\.json beside it"):
        open_program(copied)
    with pytest.raises(RuntimeFailure, match=r"none\.tvm"):
        open_program(tmp_path / "none.tvm.so")


def test_a_library_that_is_none_of_tvm_is_refused(copied: Path) -> None:
    """The digest fits, but the file is text."""
    from narrowgauge.runtimes.tvm import describe, read_description

    known = read_description(copied)
    copied.write_text("no machine code")
    describe(
        copied, inputs=known.inputs, outputs=known.outputs, processor=known.processor, features=known.features,
        tvm=known.tvm,
    )  # fmt: skip
    with pytest.raises(RuntimeFailure, match="could not load the library"):
        open_program(copied)
