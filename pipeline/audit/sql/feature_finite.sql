-- Every feature is a finite number.
-- Needs: features
-- Figures: {rows} rows, values that are not finite: {nonfinite}
SELECT
    verdict(count(*) FILTER (coalesce(image_nonfinite, 0) + state_nonfinite > 0) > 0, false)
        AS verdict,
    count(*) AS rows,
    coalesce(sum(image_nonfinite), 0) + sum(state_nonfinite) AS nonfinite,
    min(key, 5) FILTER (coalesce(image_nonfinite, 0) + state_nonfinite > 0) AS keys
FROM feature_values
