"""ONNX networks as PyTorch modules: `module.to_module` builds one; an operator is one row of `table.OPERATORS`.

Input: an `onnx_ir.Model` of opset 21 or newer, float or in Q/DQ form. Output: a torch.nn.Module that computes the same,
whose parts carry the names of the network's values. It writes no files, and what the table lacks it refuses by name.
"""
