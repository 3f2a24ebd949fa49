"""Number types, granularity, encodings, the plan and the reference arithmetic: what everything else is tested against.

Input and output: numpy arrays and frozen records. It never reads a network, knows no target and imports only numpy.
"""
