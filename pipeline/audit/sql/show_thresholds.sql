-- The limits of the checks (change one with --limit NAME=VALUE).
-- Chart: table
SELECT name, value, meaning FROM thresholds
