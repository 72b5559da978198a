"""features -> regions."""
