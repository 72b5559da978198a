"""The parts of `codeseg train`."""
