"""Statistics and a target to a `Plan`: which tensors, which number type, which scale and zero point.

Input: model, statistics, target, choices. Output: a plan with its notes and refusals. It never changes the model and
never runs it.
"""
