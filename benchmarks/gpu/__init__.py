"""Everything to ask of a machine with a GPU, in parts: ``benchmarks/gpu.sh`` runs them.

Refuses to go on where a part went wrong: the others go on without it.
"""
