"""Read networks from files: each importer gives an `onnx_ir.Model` at one opset, with weights as initializers.

Input: a path or an in-memory network. Output: a checked model plus notes on what was changed on the way in.
Never quantizes, never changes what the network computes, never runs code that a file brings along.
"""
