"""Images with captions or masks: where they come from, decoded once."""
