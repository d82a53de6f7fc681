"""Measurements: accuracy and throughput, each with the command that makes it."""
