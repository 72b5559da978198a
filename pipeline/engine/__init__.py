"""The engine of the stages: storage, ledger, Ray, progress, overview."""
