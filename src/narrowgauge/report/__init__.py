"""Records to one self-contained HTML page.

Input: the frozen records of analysis and pipeline. Output: HTML. It never computes a result and never loads anything
from the network.
"""
