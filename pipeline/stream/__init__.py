"""features, vocabulary, regions -> training batches; light."""
