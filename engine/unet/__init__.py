"""A task model in place of the method: one network that needs no prompt."""
