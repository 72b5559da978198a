"""All tables and the ledger -> DuckDB views, checks, selections."""
