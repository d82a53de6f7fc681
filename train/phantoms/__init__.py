"""Synthetic scans with true masks, and the bundle that is made of them."""
