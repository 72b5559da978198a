"""A URL list, tars, or folders of pictures -> pairs."""
