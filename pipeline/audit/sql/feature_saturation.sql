-- The int8 image tokens, where there are any, are not cut off at their limits.
-- Needs: features
-- Figures: {int8_rows} int8 rows; most saturated: {largest_share%} of a row's values
SELECT
    verdict(false, max(saturated) > threshold('saturated_share')) AS verdict,
    count(saturated) AS int8_rows,
    coalesce(round(max(saturated), 4), 0) AS largest_share,
    min(key, 5) FILTER (saturated > threshold('saturated_share')) AS keys
FROM feature_values
