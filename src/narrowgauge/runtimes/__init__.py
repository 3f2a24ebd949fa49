"""Engines that run a network file: one for each file, behind one small protocol.

Input: a file and arrays. Output: arrays and measured times. It never changes the network.
"""
