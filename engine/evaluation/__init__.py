"""Masks against true masks. Refuses to know models and runs."""
