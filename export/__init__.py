"""Trained weights as graphs that run without the training code, published only if they agree."""
