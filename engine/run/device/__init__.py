"""The models at work: what is launched on the device next, and what becomes of its answers."""
