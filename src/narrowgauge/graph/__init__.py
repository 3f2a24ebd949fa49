"""Helpers over `onnx_ir`: read constants and shapes, edit nodes, classify operators.

Input: an `onnx_ir.Model` and its parts. Output: plain values, or the same model edited in place where the name says so.
Never wraps the graph in a class of its own and never runs a network.
"""
