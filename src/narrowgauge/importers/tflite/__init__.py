"""TFLite networks, float and quantized: `convert` reads a file and makes the ONNX network that computes the same.

In: the path of a .tflite file. Out: `Converted`, in Q/DQ form where the file holds integers that stand for real
numbers, with the file's own scales and zero points. It never runs the network and never guesses at an operator.
"""

from narrowgauge.importers.tflite.conversion import convert
from narrowgauge.importers.tflite.litert import read_network

__all__ = ["convert", "read_network"]
