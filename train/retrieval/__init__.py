"""Which caption a model finds for an image, and vice versa. Refuses to know how it was trained."""
