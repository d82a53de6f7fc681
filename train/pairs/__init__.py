"""Images with captions: where they come from, decoded once. Refuses to know who learns of them."""
