"""The engine that runs all stages: storage, ledger, Ray, progress, overview."""
