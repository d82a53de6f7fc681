"""Weak supervision: a residual U-Net that learns from the masks of a run."""
