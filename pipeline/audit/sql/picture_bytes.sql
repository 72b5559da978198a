-- Few stored pictures are suspiciously small or large files (of those that were decoded).
-- Needs: pairs
-- Figures: {pictures} pictures, {mean} bytes on average, {smallest} to {largest}; suspect: {suspect%}
WITH judged AS (
    SELECT *, bytes NOT BETWEEN threshold('bytes_low') AND threshold('bytes_high') AS suspect
    FROM picture_values
)
SELECT
    verdict(false, share(count(*) FILTER (suspect), count(*)) > threshold('bytes_share')) AS verdict,
    count(*) AS pictures,
    round(avg(bytes)) AS mean,
    min(bytes) AS smallest,
    max(bytes) AS largest,
    share(count(*) FILTER (suspect), count(*)) AS suspect,
    min(key, 5) FILTER (suspect) AS keys
FROM judged
