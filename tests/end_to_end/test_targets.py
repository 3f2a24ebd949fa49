"""Every target plans and simulates the networks that come along, and loses little accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from narrowgauge.data import InputSpec
from narrowgauge.demo import NETWORK_NAMES, digits, network_path
from narrowgauge.runtimes.engines import open_program
from narrowgauge.runtimes.feeding import taking
from narrowgauge.targets.registry import load_target, target_names
from tests.cli.running import record

CALIBRATING, CHECKING = 16, 200

# Points of top-1 that 8 bits may cost on these small networks; no target is meant to be at the limit.
WORST = {"digits_conv": 3.0, "digits_vit": 6.0}


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels, trained = digits()
    used = np.r_[:CALIBRATING, trained : trained + CHECKING]
    path = tmp_path_factory.mktemp("samples") / "digits.npz"
    np.savez(path, image=images[used], labels=labels[used])
    return path


def cases() -> list[object]:
    """Every target and network; those that take long and have a shorter test elsewhere are slow."""
    slow = {("pytorch-fbgemm", "digits_vit"), ("pytorch-qnnpack", "digits_vit"), ("tvm", "digits_vit")}
    return [
        pytest.param(target, network, marks=pytest.mark.slow if (target, network) in slow else ())
        for target in target_names()
        for network in NETWORK_NAMES
    ]


@pytest.mark.parametrize(("target", "network"), cases())
def test_accuracy_survives(tmp_path: Path, samples: Path, target: str, network: str) -> None:
    out = tmp_path / "out"
    summary = record(
        "quantize", network_path(network), "--target", target, "--data", samples, "--samples", CALIBRATING, "--out", out
    )
    assert summary["checked_samples"] == CHECKING
    assert summary["quantized"]["top1"] >= summary["float"]["top1"] - WORST[network]
    plan = json.loads((out / "plan.json").read_text())
    assert plan["target"] == target
    assert plan["encodings"]
    assert (out / summary["runnable"]["file"]).exists()
    assert summary["runnable"]["runtime"] == (load_target(target).runtime if load_target(target).formats else "")
    assert summary["quantized"]["top1"] == pytest.approx(accuracy(out / summary["runnable"]["file"], summary), abs=0.5)


def accuracy(path: Path, summary: dict[str, Any]) -> float:
    """Top-1 of the file, run by its engine, or simulated by plain onnxruntime."""
    images, labels, trained = digits()
    feed = {"image": images[trained : trained + CHECKING]}
    runtime = summary["runnable"]["runtime"]
    if runtime in ("", "onnxruntime"):
        options = onnxruntime.SessionOptions()
        if not runtime:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        scores = session.run(None, feed)[0]
    else:
        program = open_program(path, runtime=runtime)
        run = taking(program, [InputSpec(name="image", shape=(None, 1, 8, 8), dtype=np.dtype("f4"))], program.outputs)
        scores = next(iter(run(feed).values()))
    return float(100 * np.mean(scores.argmax(1) == labels[trained : trained + CHECKING]))
