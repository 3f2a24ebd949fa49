"""The command line: one command for each file.

Input: arguments. Output: files, text for people or JSON for scripts, an exit code. It never does what the Python API
cannot.
"""
