"""Samples to statistics in one pass, and statistics to ranges.

Input: a float model and samples. Output: mergeable `Statistics`, and ranges from them. It never keeps a tensor, never
changes the model and knows no target.
"""
