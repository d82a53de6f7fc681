"""Which caption a model finds for an image, and which image for a caption."""
