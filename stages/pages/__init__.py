"""HTML pages of reports and audits."""
