"""A float model and a plan to a model with quantized arithmetic: Q/DQ (simulated) or integer operators.

Input: model, plan, target. Output: an `onnx_ir.Model`. It never chooses a scale and never writes a file.
"""
