"""pairs -> nouns."""
