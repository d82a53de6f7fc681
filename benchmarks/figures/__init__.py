"""What the documents say of the results, made of ``benchmarks/results/*.json`` and of nothing else.

Refuses to measure.
"""
