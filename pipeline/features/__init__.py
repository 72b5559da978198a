"""pairs, nouns -> vocabulary, features."""
