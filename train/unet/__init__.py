"""Weak supervision: a U-Net that learns from the masks of a run. Refuses to know how they arose."""
