"""Fine-tuning SAM on masks."""
