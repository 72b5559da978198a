-- Few pictures are a single color (of those that were decoded).
-- Needs: pairs
-- Figures: {blank%} of {pictures} pictures are blank
SELECT
    verdict(false, share(count(*) FILTER (deviation < threshold('blank_deviation')), count(*))
        > threshold('blank_share')) AS verdict,
    count(deviation) AS pictures,
    share(count(*) FILTER (deviation < threshold('blank_deviation')), count(*)) AS blank,
    min(key, 5) FILTER (deviation < threshold('blank_deviation')) AS keys
FROM picture_values
