"""Synthetic scans with true masks, and the bundle made of them. Refuses to know real images."""
