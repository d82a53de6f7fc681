"""The page of a run, and what a person decided on it. Refuses to know models."""
