"""A planned network to the file its target reads: one format for each file.

Input: model, plan, target, a path. Output: the file, read back and compared. It never changes a number of the plan.
"""
