"""Q/DQ networks to networks of integer operators that compute what an engine computes, level for level.

Input: a network in Q/DQ form (`lowering.qdq`, importers of quantized files) and an engine's `Kernels`.
Output: an ordinary ONNX network, in which no real number stands between the first QuantizeLinear and the last
DequantizeLinear. Never approximates: what has no exact integer form stays between its Q and DQ, and is said.
"""
