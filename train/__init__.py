"""Phantoms, losses and trainings; makes the bundle that ships with the package."""
