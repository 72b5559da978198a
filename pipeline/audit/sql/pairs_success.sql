-- As many URLs yield a picture as expected.
-- Needs: pairs
-- Figures: success rate {success%}: {pictures} pictures from {urls} URLs
SELECT
    verdict(share(count(*) FILTER (status = 'success'), count(*)) < threshold('success_fail'),
            share(count(*) FILTER (status = 'success'), count(*)) < threshold('success_warn'))
        AS verdict,
    count(*) AS urls,
    count(*) FILTER (status = 'success') AS pictures,
    share(count(*) FILTER (status = 'success'), count(*)) AS success,
    CAST([] AS VARCHAR[]) AS keys
FROM pairs
