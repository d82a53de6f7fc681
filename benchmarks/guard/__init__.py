"""A guard against getting slower: a few ratios that must not fall below a floor.

Refuses to give figures: those stand in ``benchmarks/results``.
"""
