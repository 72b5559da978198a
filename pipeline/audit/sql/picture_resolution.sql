-- Few pictures are small as served.
-- Needs: pairs
-- Figures: {pictures} pictures, shorter side: median {median} pixels, smallest {smallest}; small: {small%}
WITH judged AS (
    SELECT key, least(original_width, original_height) AS side FROM pairs WHERE status = 'success'
)
SELECT
    verdict(false, share(count(*) FILTER (side < threshold('small_side')), count(*))
        > threshold('small_share')) AS verdict,
    count(*) AS pictures,
    min(side) AS smallest,
    approx_quantile(side, 0.5) AS median,
    share(count(*) FILTER (side < threshold('small_side')), count(*)) AS small,
    min(key, 5) FILTER (side < threshold('small_side')) AS keys
FROM judged
