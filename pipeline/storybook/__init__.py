"""The embedded dataset: drawn scenes with captions and label maps."""
