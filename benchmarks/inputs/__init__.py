"""What benchmarks are fed with: made-up scans, archives of phantoms, models of full size.

Refuses to measure anything.
"""
