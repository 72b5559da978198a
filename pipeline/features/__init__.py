"""pairs, nouns -> features, vocabulary."""
