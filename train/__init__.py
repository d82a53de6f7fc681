"""Trainings, what they are judged by, and the data sets and phantoms that they learn from."""
