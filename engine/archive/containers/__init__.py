"""Files that hold files: tar, zip and what they need. Nothing is extracted to disk."""
