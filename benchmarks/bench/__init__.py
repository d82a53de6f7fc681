"""``medclipsam bench``: where a run's time goes on a user's machine, and what would make it faster.

Refuses to judge masks.
"""
