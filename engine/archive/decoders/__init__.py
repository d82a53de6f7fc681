"""Decoding in processes that may die without taking the run along."""
