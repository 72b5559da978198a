"""What reports and audits are drawn with."""
