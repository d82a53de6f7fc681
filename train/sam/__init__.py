"""Fine-tuning SAM on boxes and masks. Refuses to know texts, and who drew the masks."""
