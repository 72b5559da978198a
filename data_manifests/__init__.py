"""What data exists: one TOML file a dataset or benchmark; no code."""
