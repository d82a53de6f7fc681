"""Fine-tuning BiomedCLIP on pairs of image and caption. Refuses to know where pairs come from."""
