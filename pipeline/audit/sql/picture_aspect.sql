-- Few pictures are far taller than wide, or far wider than tall.
-- Needs: pairs
-- Figures: longer over shorter side: median {median}, largest {largest}; extreme: {extreme%}
WITH judged AS (
    SELECT key, greatest(original_width, original_height)
        / greatest(least(original_width, original_height), 1) AS aspect
    FROM pairs WHERE status = 'success'
)
SELECT
    verdict(false, share(count(*) FILTER (aspect > threshold('aspect')), count(*))
        > threshold('aspect_share')) AS verdict,
    round(approx_quantile(aspect, 0.5), 3) AS median,
    round(max(aspect), 3) AS largest,
    share(count(*) FILTER (aspect > threshold('aspect')), count(*)) AS extreme,
    min(key, 5) FILTER (aspect > threshold('aspect')) AS keys
FROM judged
