"""All tables and the ledger -> DuckDB views, checks, a page."""
