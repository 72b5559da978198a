"""SCG: grouping and region recognition."""
