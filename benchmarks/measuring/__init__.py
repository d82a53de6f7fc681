"""How benchmarks measure and what they keep: turns, statistics, the machine, result files.

Refuses to know what is measured.
"""
