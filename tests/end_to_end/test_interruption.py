"""Killed, interrupted, or out of disk: the folder is the old one or the new one, whole, or there is none."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from narrowgauge import Statistics
from narrowgauge.exporters.folder import new_folder
from tests.cli import networks
from tests.cli.running import done, process, record

SLOW_FEEDS = """
import pathlib, time
import numpy as np

def feeds():
    generator = np.random.default_rng(0)
    for number in range(400):
        if number == 20:
            pathlib.Path("started").touch()
        if number > 20:
            time.sleep(0.05)
        yield {"image": generator.standard_normal((1, 3, 8, 8)).astype(np.float32)}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    networks.convolution(tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", networks.random(64, 3, 8, 8))
    (tmp_path / "slow_feeds.py").write_text(SLOW_FEEDS)
    return tmp_path


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} - {"__pycache__", "started"}


def check_whole(folder: Path) -> dict[str, object]:
    """Check every file against the digests of the summary, which is written last."""
    summary = json.loads((folder / "summary.json").read_text())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    found.pop("summary.json")
    assert found == {name: entry["sha256"] for name, entry in summary["files"].items()}
    return dict(summary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_writes_nothing(here: Path, number: signal.Signals) -> None:
    before = names(here)
    running = process("quantize", "net.onnx", "--data", "slow_feeds:feeds", "--out", "out", cwd=here)
    wait_for(here / "started", running)
    running.send_signal(number)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert stdout == ""
    assert "nothing was written" in stderr
    assert len(stderr.splitlines()) == 1
    assert names(here) == before


def test_a_terminal_sees_a_progress_bar_and_only_on_stderr(here: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from narrowgauge.cli import main; main()"]
    arguments = ["calibrate", "net.onnx", "--data", "slow_feeds:feeds", "--samples", "60", "--out", "s.npz"]
    running = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=theirs, cwd=here, text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # what a terminal says at its end
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    stdout, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert b"calibrate" in seen
    assert b"60/?" in seen  # a generator does not say how much it will yield
    assert stdout.startswith("s.npz: statistics of ")


def test_an_interrupted_run_keeps_its_statistics_and_goes_on(here: Path) -> None:
    arguments = ("quantize", "net.onnx", "--data", "slow_feeds:feeds", "--samples", 24, "--check-samples", 2,
                 "--statistics", "s.npz", "--out", "out")  # fmt: skip
    running = process(*arguments, cwd=here)
    wait_for(here / "started", running)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the statistics so far are in s.npz" in stderr
    seen = Statistics.load(here / "s.npz").samples
    assert 0 < seen < 24
    again = process(*arguments, cwd=here)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 0, stderr
    assert Statistics.load(here / "s.npz").samples == 24


def test_an_interrupted_calibration_is_kept(here: Path) -> None:
    running = process("calibrate", "net.onnx", "--data", "slow_feeds:feeds", "--out", "s.npz", cwd=here)
    wait_for(here / "started", running)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    seen = Statistics.load(here / "s.npz").samples
    assert f"the statistics of the first {seen} samples are in s.npz" in stderr
    assert "s.npz.partial" not in names(here)


def test_killed_at_any_moment_the_folder_is_the_old_or_the_new_one(here: Path) -> None:
    out = here / "out"
    arguments = ("quantize", here / "net.onnx", "--data", here / "x.npy", "--out", out, "--force", "--quiet")
    old, new = (*arguments, "--recipe", "plain"), (*arguments, "--recipe", "fast")
    done(*old)
    start = time.monotonic()
    running = process(*new)
    running.communicate(timeout=60)
    assert running.returncode == 0
    lasts = time.monotonic() - start
    generator = np.random.default_rng()
    for part in (*generator.uniform(0.3, 0.9, 2), *generator.uniform(0.9, 1.1, 4)):
        done(*old)
        running = process(*new)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=part * lasts)
        running.kill()
        running.communicate(timeout=60)
        assert check_whole(out)["recipe"] in ("plain", "fast")


def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    missed: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                assert (out / "b").read_text() in ("old", "new")
            except FileNotFoundError:
                missed.append(time.monotonic())

    for content in ("old", "new"):
        with new_folder(out, force=True) as folder:
            (folder / "b").write_text(content)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(300):
            with new_folder(out, force=True) as folder:
                (folder / "b").write_text(("old", "new")[number % 2])
    finally:
        ended.set()
        watcher.join()
    # Between looking the folder up and opening the file in it, the reader itself may fall behind; a gap shows often.
    assert len(missed) <= 3
    assert names(tmp_path) == {"out"}


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("kilobytes", [4, 24, 40, 64])
def test_a_full_disk_leaves_the_old_folder(here: Path, kilobytes: int) -> None:
    if os.geteuid():
        pytest.skip("needs the right to mount a small disk: not root")
    with small_disk(here / "disk", kilobytes) as disk:
        (disk / "out").mkdir()
        (disk / "out" / "precious").write_text("keep me")
        result = done("quantize", here / "net.onnx", "--data", here / "x.npy", "--out", disk / "out", "--force", code=1)
        assert result.stderr.startswith("error: ")
        assert "No space left on device" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert (disk / "out" / "precious").read_text() == "keep me"
        assert names(disk) == {"out"}


@pytest.mark.parametrize("limit", [100, 2000, 6000])
def test_files_that_cannot_grow_leave_nothing(here: Path, limit: int) -> None:
    """Works without rights: the process may write only so many bytes into one file."""
    before = names(here)
    running = process(
        "quantize", "net.onnx", "--data", "x.npy", "--out", "out", cwd=here,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "File too large" in stderr
    assert len(stderr.splitlines()) == 1
    assert names(here) == before


def test_statistics_on_a_full_disk_are_one_error(here: Path) -> None:
    running = process(
        "calibrate", "net.onnx", "--data", "x.npy", "--out", "s.npz", cwd=here,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "File too large" in stderr
    assert names(here) == {"net.onnx", "x.npy", "slow_feeds.py"}


def test_force_replaces_the_folder_whole(here: Path) -> None:
    out = here / "out"
    out.mkdir()
    (out / "old").touch()
    record("quantize", here / "net.onnx", "--data", here / "x.npy", "--out", out, "--force")
    check_whole(out)
    assert not (out / "old").exists()
