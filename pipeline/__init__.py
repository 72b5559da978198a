"""The data between stages, and the offline work on it."""
