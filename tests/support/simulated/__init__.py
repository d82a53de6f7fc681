"""A CUDA device for tests on machines without one; begin at ``simulated.cuda``."""
