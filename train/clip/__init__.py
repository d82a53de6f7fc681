"""Fine-tuning BiomedCLIP on pairs of image and caption."""
