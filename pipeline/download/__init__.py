"""URL list or tars -> pairs."""
