-- What the checks call normal (change one with --limit NAME=VALUE).
-- Chart: table
SELECT name, value, meaning FROM thresholds
