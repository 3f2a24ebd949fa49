"""Every target plans and simulates the networks that come along, and loses little accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from narrowgauge.demo import NETWORK_NAMES, digits, network_path
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


@pytest.mark.parametrize("network", NETWORK_NAMES)
@pytest.mark.parametrize("target", target_names())
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
    assert (out / "model.onnx").exists() == bool(load_target(target).formats)
    assert summary["quantized"]["top1"] == pytest.approx(accuracy(out, summary), abs=0.5)


def accuracy(out: Path, summary: dict[str, object]) -> float:
    """Top-1 of the file, run by plain onnxruntime."""
    path = out / "model.onnx" if (out / "model.onnx").exists() else out / "simulated.onnx"
    options = onnxruntime.SessionOptions()
    if summary["latency_ms"] == {"float": None, "quantized": None}:  # not the target's engine: simulated as written
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images, labels, trained = digits()
    scores = session.run(None, {"image": images[trained : trained + CHECKING]})[0]
    return float(100 * np.mean(scores.argmax(1) == labels[trained : trained + CHECKING]))
