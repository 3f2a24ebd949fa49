"""The folder of a run is the old one, the new one, or none: never half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import load_plan
from narrowgauge.data import Preprocess, default_preprocess, load_preprocess
from narrowgauge.errors import DataError, OutputError
from narrowgauge.exporters import folder as module
from narrowgauge.exporters.folder import describe_files, new_folder, write_forms, write_plan, write_summary
from narrowgauge.exporters.forms import forms_for
from narrowgauge.targets.registry import load_target
from tests.planning.networks import network, normal, planned, seen

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}


def fill(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)
    (folder / "b").write_text(text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    return out


def alone(out: Path) -> bool:
    """Whether nothing but the folder was left beside it."""
    return [path.name for path in out.parent.iterdir()] in ([], [out.name])


@pytest.mark.parametrize("before", ["missing", "empty", "parents missing"])
def test_a_new_folder(tmp_path: Path, before: str) -> None:
    out = tmp_path / "deep" / "er" if before == "parents missing" else tmp_path / "out"
    if before == "empty":
        out.mkdir()
    with new_folder(out) as folder:
        assert folder.parent == out.parent
        assert not out.exists() or before == "empty"
        fill(folder, "new")
    assert content(out) == {"a": "new", "b": "new"}
    assert alone(out)
    assert out.stat().st_mode & 0o777 == 0o755


def test_without_a_place_it_is_removed_at_the_end() -> None:
    with new_folder(None) as folder:
        fill(folder, "new")
        assert content(folder)
    assert not folder.exists()


def test_force_replaces_the_folder_whole(old: Path) -> None:
    with new_folder(old, force=True) as folder:
        (folder / "c").write_text("new")
        assert content(old) == {"a": "old", "b": "old"}
    assert content(old) == {"c": "new"}
    assert alone(old)


@pytest.mark.parametrize("reads", ["a", "deep/b", "."])
def test_force_does_not_remove_what_the_run_reads(old: Path, reads: str) -> None:
    (old / "deep").mkdir()
    (old / "deep" / "b").write_text("precious")
    for place in (old / reads, str(old / reads)):
        with (
            pytest.raises(OutputError, match=r"--force would remove .*, which this run reads"),
            new_folder(old, force=True, reads=[None, object(), "onnxruntime", place]),
        ):
            pass
    assert (old / "a").read_text() == "old"
    assert alone(old)


def test_force_replaces_what_an_earlier_run_wrote_though_this_one_reads_it(old: Path) -> None:
    write_summary({"files": {"a": {}, "b": {}}}, old / "summary.json")
    with new_folder(old, force=True, reads=[old / "a"]) as folder:
        fill(folder, "new")
    assert content(old) == {"a": "new", "b": "new"}


@pytest.mark.parametrize("where", ["working folder", "home"])
def test_force_does_not_remove_where_it_runs_or_lives(old: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    inner = old / "inner"
    inner.mkdir()
    if where == "home":
        monkeypatch.setenv("HOME", str(inner))
    else:
        monkeypatch.chdir(inner)
    for out in (old, inner / ".."):
        with pytest.raises(OutputError, match="--force would remove"), new_folder(out, force=True):
            pass
    assert (old / "a").read_text() == "old"


@pytest.mark.parametrize("force", [False, True])
def test_a_taken_place_is_refused_at_once(old: Path, force: bool) -> None:
    file = old.parent / "file"
    file.write_text("precious")
    entered = False
    for out, said in ((file, "there is a file"), *(() if force else ((old, "--force to replace it"),))):
        with pytest.raises(OutputError, match=said), new_folder(out, force=force):
            entered = True
    assert not entered
    assert file.read_text() == "precious"
    assert content(old) == {"a": "old", "b": "old"}


def fail_in(out: Path, error: BaseException, *, written: int) -> None:
    with new_folder(out, force=True) as folder:
        if written:
            fill(folder, "new")
        raise error


@pytest.mark.parametrize(
    ("error", "raised"), [(FULL, OutputError), (DataError("bad"), DataError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("written", [0, 1])
def test_a_failure_while_writing_leaves_the_old_folder(
    old: Path, error: BaseException, raised: type[BaseException], written: int
) -> None:
    with pytest.raises(raised) as caught:
        fail_in(old, error, written=written)
    assert content(old) == {"a": "old", "b": "old"}
    assert alone(old)
    if raised is OutputError:
        assert str(caught.value) == f"{old}: could not write: No space left on device; nothing was changed"


def failing(times: int, real: Callable[..., object]) -> Callable[..., object]:
    """A function that fails at one of its calls."""
    calls = iter(range(100))

    def call(*arguments: object, **named: object) -> object:
        if next(calls) == times:
            raise FULL
        return real(*arguments, **named)

    return call


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("exchanges", [False, True])
def test_a_failure_while_putting_it_in_place_leaves_the_old_folder(
    old: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool, step: int
) -> None:
    """Each renaming in turn fails; the file system changes two folders in one step, or it cannot."""
    if exchanges:
        monkeypatch.setattr(module, "_exchanged", failing(0, module._exchanged))
    else:
        monkeypatch.setattr(module, "_exchanged", lambda one, other: False)
        monkeypatch.setattr(Path, "rename", failing(step, Path.rename))
    with pytest.raises(OutputError, match="nothing was changed"), new_folder(old, force=True) as folder:
        fill(folder, "new")
    monkeypatch.undo()
    assert content(old) == {"a": "old", "b": "old"}
    assert alone(old)


def test_two_steps_do_where_one_cannot(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_exchanged", lambda one, other: False)
    with new_folder(old, force=True) as folder:
        fill(folder, "new")
    assert content(old) == {"a": "new", "b": "new"}
    assert alone(old)


def test_a_link_keeps_pointing_at_the_replaced_folder(old: Path) -> None:
    link = old.parent / "link"
    link.symlink_to(old)
    with new_folder(link, force=True) as folder:
        fill(folder, "new")
    assert link.is_symlink()
    assert content(old) == content(link) == {"a": "new", "b": "new"}
    assert sorted(path.name for path in old.parent.iterdir()) == ["link", "out"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="could not make the folder: "),
        new_folder(tmp_path / "file" / "x"),
    ):
        pass


# --- what stands in it ----------------------------------------------------------------------------------------


def test_the_network_before_recovery_and_the_preprocessing(tmp_path: Path) -> None:
    model = network("float[n, 16] x", "float[n, 8] y", "y = Gemm(x, w, b)", w=normal(16, 8), b=normal(8))
    other = network("float[n, 16] x", "float[n, 8] y", "y = Gemm(x, w, b)", w=normal(16, 8), b=normal(8, seed=9))
    plan = planned(model, seen(model, normal(20, 16)))
    forms, how = forms_for(load_target("onnxruntime"), model, plan), Preprocess(resize=9, mean=(0.5,), label_offset=1)
    (tmp_path / "same").mkdir()
    write_forms(tmp_path / "same", forms, model, plan, None, original=model)
    assert not {"original.onnx", "model.toml"} & {path.name for path in (tmp_path / "same").iterdir()}
    write_forms(tmp_path, forms, model, plan, None, original=other, preprocess=how)
    assert load_preprocess(tmp_path / "model.toml") == how
    assert default_preprocess(tmp_path / "model.onnx") == how
    written = onnx.load(tmp_path / "original.onnx").graph.initializer
    held = next(onnx.numpy_helper.to_array(tensor) for tensor in written if tensor.name == "b")
    np.testing.assert_array_equal(held, normal(8, seed=9))


@pytest.mark.parametrize(("target", "own"), [("onnxruntime", "model.onnx"), ("tflite", "model.tflite")])
def test_every_form_the_plan_and_the_statistics(tmp_path: Path, target: str, own: str) -> None:
    if target == "tflite":
        pytest.importorskip("ai_edge_litert", reason="writes a .tflite file")
    model = network("float[n, 16] x", "float[n, 8] y", "y = Gemm(x, w, b)", w=normal(16, 8), b=normal(8))
    statistics = seen(model, normal(20, 16))
    plan = planned(model, statistics, target)
    written = write_forms(tmp_path, forms_for(load_target(target), model, plan), model, plan, statistics)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"simulated.onnx", "integer.onnx", "float.onnx", "plan.json", "statistics.npz", own}
    assert written.runnable.name == own
    assert load_plan(tmp_path / "plan.json").same_as(plan)
    kept = Statistics.load(tmp_path / "statistics.npz")
    assert kept.network == statistics.network
    assert (kept.of("x").minimum, kept.of("x").maximum) == (statistics.of("x").minimum, statistics.of("x").maximum)
    for name, entry in describe_files(tmp_path).items():
        assert entry["bytes"] == (tmp_path / name).stat().st_size
        assert entry["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_without_statistics_there_is_no_such_file(tmp_path: Path) -> None:
    model = network("float[n, 16] x", "float[n, 8] y", "y = MatMul(x, w)", w=normal(16, 8))
    plan = planned(model, None, mode="weight-only")
    write_forms(tmp_path, forms_for(load_target("onnxruntime"), model, plan), model, plan, None)
    assert "statistics.npz" not in {path.name for path in tmp_path.iterdir()}


def test_a_plan_that_reads_back_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("float[n, 16] x", "float[n, 8] y", "y = MatMul(x, w)", w=normal(16, 8))
    plan = planned(model, None, mode="weight-only")
    whole = module.plan_to_json
    monkeypatch.setattr(module, "plan_to_json", lambda given: whole(given).replace("weight-only", "static"))
    with pytest.raises(OutputError, match="another plan"):
        write_plan(plan, tmp_path / "plan.json")
    monkeypatch.undo()
    with pytest.raises(OutputError, match="could not write the plan"):
        write_plan(plan, tmp_path / "none" / "plan.json")


def test_a_summary_is_plain_json(tmp_path: Path) -> None:
    write_summary({"a": [1, None, "ü"]}, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == {"a": [1, None, "ü"]}
    with pytest.raises(OutputError, match="could not write the summary"):
        write_summary({}, tmp_path / "none" / "s.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_summary({"a": np.nan}, tmp_path / "s.json")
