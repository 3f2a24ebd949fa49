"""What each chip can do, as data: one TOML for each, every row with its source.

Input: a name or a file. Output: a frozen `Target`. It never looks at a network and never holds code for one chip.
"""
