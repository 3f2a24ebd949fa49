"""Keras ResNet50 to a compiled library of integers: quantize, compile, run, in one call.

    pip install -e ".[keras,tvm]" torch==2.13.0
    python examples/keras_resnet50_tvm.py                                   # random weights, made-up images
    python examples/keras_resnet50_tvm.py --model resnet.keras --data photos/ --recipe tvm-kl

The same from the command line: `narrowgauge quantize resnet.keras --target tvm --data photos/ --out resnet50-tvm`.

Without a file the network of `keras.applications` is built with random weights, which nobody has to download: its
answers mean nothing, but sizes, times and the distance between float and integers are those of a ResNet50. Photos are
prepared as Keras prepares them for this network (BGR, the mean of ImageNet taken off).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

import narrowgauge
from narrowgauge.data import Color, Layout, Preprocess
from narrowgauge.runtimes.engines import open_program

SIDE = 224
MEAN = (103.939, 116.779, 123.68)
"""Of ImageNet, blue, green, red, from 0 to 255 (keras.applications.imagenet_utils, mode "caffe")."""


def main() -> None:
    """Read the command line; quantize, compile and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a .keras file; without one, ResNet50 with random weights")
    parser.add_argument("--data", type=Path, help="a folder of photos; without one, made-up images")
    parser.add_argument("--recipe", default="fast", help="auto, best, fast, plain, tvm-kl, tvm-global-scale")
    parser.add_argument("--samples", type=int, default=16, help="how many calibrate")
    parser.add_argument("--out", type=Path, default=Path("resnet50-tvm"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="narrowgauge-resnet50-") as folder:
        model = asked.model or random_resnet50(Path(folder) / "resnet50.keras")
        data = asked.data or made_up_images(asked.samples + 8)
        preprocess = None
        if asked.data is not None and asked.model is None:
            preprocess = Preprocess(
                resize=256, crop=SIDE, color=Color.BGR, layout=Layout.NHWC, scale=(1.0,),
                offset=tuple(-level for level in MEAN),
            )  # fmt: skip
        result = narrowgauge.quantize(
            model, data, target="tvm", recipe=asked.recipe, samples=asked.samples, check_samples=8,
            preprocess=preprocess, analysis="none", out=asked.out, force=True,
        )  # fmt: skip
    tell(result)
    library = asked.out / "model.tvm.so"
    program = open_program(library, threads=1)
    feed = {spec.name: np.zeros([extent or 1 for extent in spec.shape], spec.dtype) for spec in program.inputs}
    answers = program.run(feed)
    print(f"{library} runs by itself: {', '.join(f'{name} {array.shape}' for name, array in answers.items())}")


def random_resnet50(path: Path) -> Path:
    """Build ResNet50 with random weights and save it."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    keras.utils.set_random_seed(0)
    keras.applications.ResNet50(weights=None).save(path)
    return path


def made_up_images(count: int) -> np.ndarray:
    """Draw smooth random images in the range that Keras prepares photos to, `[count, height, width, 3]`."""
    generator = np.random.default_rng(0)
    coarse = generator.uniform(0, 255, (count, SIDE // 8, SIDE // 8, 3))
    pixels = np.clip(
        coarse.repeat(8, axis=1).repeat(8, axis=2) + generator.normal(0, 8, (count, SIDE, SIDE, 3)), 0, 255
    )
    return (pixels - np.array(MEAN)).astype(np.float32)


def tell(result: narrowgauge.Result) -> None:
    """Print answers, sizes and times before and after."""
    summary = result.summary
    if summary["first_sample"] is not None:
        top = summary["first_sample"]["top5"]
        print(f"top-5 of {summary['first_sample']['name']}: float {top['float']}, integers {top['quantized']}")
    sizes, times = summary["size_bytes"], summary["latency_ms"]
    print(f"agreement of the best answer: {summary['agreement_top1']} %, SQNR {summary['sqnr_db']} dB")
    ratio = sizes["float"] / sizes["quantized"]
    print(f"bytes: float {sizes['float']:,}, library {sizes['quantized']:,}, {ratio:.2f} times less")
    runtimes = summary["latency_runtimes"]
    for name in ("float", "quantized"):
        print(f"one image, one thread, {name} in {runtimes[name]}: {times[name]:.2f} ms")


if __name__ == "__main__":
    main()
