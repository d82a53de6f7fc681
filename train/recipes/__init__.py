"""Data sets of the paper: from a download to a table, one command each. Trains nothing itself."""
