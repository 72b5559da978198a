"""What `codeseg train` is made of."""
