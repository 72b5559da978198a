-- As many URLs yield a picture as expected.
-- Needs: pairs
-- Figures: success rate {success%}: {pictures} pictures from {urls} URLs; lines of the list that were no rows: {left_out}
SELECT
    verdict(share(count(*) FILTER (status = 'success'), count(*)) < threshold('success_fail'),
            share(count(*) FILTER (status = 'success'), count(*)) < threshold('success_warn'))
        AS verdict,
    count(*) AS urls,
    count(*) FILTER (status = 'success') AS pictures,
    share(count(*) FILTER (status = 'success'), count(*)) AS success,
    (SELECT CAST(coalesce(sum(CAST(value AS BIGINT)), 0) AS BIGINT) FROM settings
        WHERE stage = 'urls' AND name LIKE 'left_out.%') AS left_out,
    CAST([] AS VARCHAR[]) AS keys
FROM pairs
