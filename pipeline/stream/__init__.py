"""features, vocabulary, regions -> training batches. Light."""
