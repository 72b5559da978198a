"""Data: what flows between stages, and the offline work on it."""
