"""Regain accuracy: one method for each file, usable alone or chained.

Input: model, plan, and statistics or data. Output: model and plan. It never widens what the target allows and never
trains with gradients through the whole network.
"""
