-- No row's tokens or states are zero, or far longer or shorter than those of other rows.
-- Needs: features
-- Figures: median norm: {image_median} of image tokens, {state_median} of caption states; rows of zeros: {zero}, odd rows: {odd}
WITH finite AS (  -- the others are feature_finite's
    FROM feature_values WHERE coalesce(image_nonfinite, 0) + state_nonfinite = 0
), usual AS (
    SELECT median(image_norm_mean) AS image, median(state_norm_mean) AS state FROM finite
), judged AS (
    SELECT key, image_norm_min = 0 OR state_norm_min = 0 AS zero, greatest(
        image_norm_mean / image, image / image_norm_mean,
        state_norm_mean / state, state / state_norm_mean) > threshold('norm_ratio') AS odd
    FROM finite, usual
)
SELECT
    verdict(count(*) FILTER (zero) > 0, count(*) FILTER (odd) > 0) AS verdict,
    (SELECT round(image, 2) FROM usual) AS image_median,
    (SELECT round(state, 2) FROM usual) AS state_median,
    count(*) FILTER (zero) AS zero,
    count(*) FILTER (odd) AS odd,
    min(key, 5) FILTER (zero OR odd) AS keys
FROM judged
