"""Weak supervision: a residual U-Net that learns from a run's masks. Refuses to know how they arose."""
