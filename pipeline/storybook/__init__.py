"""The embedded dataset: generated scenes with captions and label maps."""
