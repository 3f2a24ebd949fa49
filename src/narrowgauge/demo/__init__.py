"""Two small trained networks and the images they were trained on, so that everything can be tried without a download.

Input: a name. Output: the path of an ONNX file in the package, or the images of scikit-learn's handwritten digits as
arrays. It never quantizes, trains or writes anything; `examples/train_digits.py` made the networks.
"""

from narrowgauge.demo.dataset import Digits, digits
from narrowgauge.demo.networks import NETWORK_NAMES, network_path

__all__ = ["NETWORK_NAMES", "Digits", "digits", "network_path"]
