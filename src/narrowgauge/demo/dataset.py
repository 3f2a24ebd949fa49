"""The images of scikit-learn's handwritten digits, in the form the packaged networks take."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowgauge.errors import MissingDependencyError

_TRAIN_COUNT = 1200
_DARKEST = 16.0  # the data set counts the dark pixels of 4x4 squares: 0..16


class Digits(NamedTuple):
    """The images in the order of the data set, which is not shuffled.

    `images[:train_count]` trained the packaged networks and is what calibration may see; `images[train_count:]` is held
    out for evaluation.
    """

    images: npt.NDArray[np.float32]
    """`(1797, 1, 8, 8)`, 0 (paper) to 1 (ink)."""
    labels: npt.NDArray[np.int64]
    """`(1797,)`, 0..9."""
    train_count: int


def digits() -> Digits:
    """Load the images from scikit-learn's own files, without a download.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
    (its test set, CC BY 4.0), as packaged by scikit-learn.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "the demo's images come with scikit-learn, which is not installed: "
            'run `pip install "narrowgauge[demo]"` (or `pip install scikit-learn`)'
        ) from error
    dataset = load_digits()
    images = (dataset.images[:, np.newaxis] / _DARKEST).astype(np.float32)
    return Digits(images=images, labels=dataset.target.astype(np.int64), train_count=_TRAIN_COUNT)
