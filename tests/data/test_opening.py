"""Real networks on real images."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from narrowgauge.data import Samples, batches, default_preprocess, open_samples
from tests.data.networks import SPEECH, image_input

IMAGENET = image_input(None, 3, 224, 224)


def hits(network: Path, samples: Samples, shape: tuple[int | None, ...], size: int = 8) -> np.ndarray:
    """Tell of each sample whether the network's best class is its label."""
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    inputs = image_input(*shape)
    found = []
    for batch in batches(samples, size, inputs):
        (name,) = (entry.name for entry in session.get_inputs())
        scores = session.run(None, {name: batch.feed["input"]})[0][: batch.count]
        found.extend(scores.argmax(axis=1) == np.array(batch.labels))
    return np.array(found)


def imagenet(zoo: Path, network: Path) -> Samples:
    return open_samples(
        zoo / "images" / "nips17" / "images",
        IMAGENET,
        preprocess=default_preprocess(network),
        labels=zoo / "images" / "nips17" / "labels.txt",
    )


@pytest.mark.slow
def test_mobilenet_v2_reaches_its_published_accuracy(zoo: Path) -> None:
    network = zoo / "models" / "mobilenet_v2" / "mobilenet_v2_1.0_224.onnx"
    correct = hits(network, imagenet(zoo, network), IMAGENET[0].shape)
    assert len(correct) == 1000
    assert round(100 * correct.mean(), 1) == 84.5
    assert round(100 * correct[256:].mean(), 1) == 84.8


def test_label_offset_meets_the_networks_classes(zoo: Path) -> None:
    network = zoo / "models" / "mobilenet_v1_025" / "mobilenet_v1_0.25_224.onnx"
    assert hits(network, imagenet(zoo, network).take(64), IMAGENET[0].shape).mean() > 0.4  # 0.1 % where it is off


def test_archive_of_class_folders_meets_the_networks_classes(zoo: Path) -> None:
    network = zoo / "models" / "cifar_resnet" / "resnet20.onnx"
    shape = (None, 3, 32, 32)
    samples = open_samples(
        zoo / "images" / "cifar10" / "test.zip", image_input(*shape), preprocess=default_preprocess(network)
    )
    assert samples.count == 10000
    correct = [hits(network, samples[start : start + 20], shape) for start in range(0, 10000, 1000)]
    assert np.concatenate(correct).mean() > 0.7  # 81.0 on all


def test_mnist_meets_the_networks_classes(zoo: Path) -> None:
    network = zoo / "models" / "onnx_other" / "mnist.onnx"
    shape = (1, 1, 28, 28)
    samples = open_samples(zoo / "images" / "mnist" / "t10k-images-idx3-ubyte.gz", image_input(*shape))
    assert hits(network, samples.take(200), shape).mean() > 0.9


def test_feeds_of_a_speech_network_run(zoo: Path) -> None:
    session = onnxruntime.InferenceSession(
        zoo / "models" / "onnx_other" / "silero_vad_16k_op15.onnx", providers=["CPUExecutionProvider"]
    )
    sound = np.random.default_rng(0).normal(size=(3, 512))
    samples = open_samples({"input": sound, "state": np.zeros((2, 1, 128)), "sr": 16000}, SPEECH)
    outputs = [session.run(None, dict(batch.feed))[0] for batch in batches(samples, 8, SPEECH)]
    assert [output.shape for output in outputs] == [(1, 1)] * 3


def test_photos_are_decoded_as_pillow_does(zoo: Path) -> None:
    network = zoo / "models" / "mobilenet_v2" / "mobilenet_v2_1.0_224.onnx"
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for sample in imagenet(zoo, network).take(12):
        with Image.open(zoo / "images" / "nips17" / "images" / sample.name) as image:
            resized = image.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized)[16:240, 16:240] / 255
        np.testing.assert_allclose(
            sample.feed["input"][0].transpose(1, 2, 0), (pixels - mean) / std, rtol=1e-6, atol=1e-6
        )
