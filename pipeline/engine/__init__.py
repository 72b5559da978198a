"""What runs a stage: storage, ledger, Ray, progress, overview."""
