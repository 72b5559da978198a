-- No host with many URLs refuses nearly all of them.
-- Needs: pairs
-- Figures: {hosts} hosts, {judged} with enough URLs to be checked, refusing nearly all: {refusing}
WITH hosts AS (
    SELECT host_of(url) AS host, count(*) AS urls,
        share(count(*) FILTER (status = 'success'), count(*)) AS success
    FROM pairs GROUP BY ALL
), judged AS (SELECT * FROM hosts WHERE urls >= threshold('host_rows'))
SELECT
    verdict(false, count(*) FILTER (success < threshold('host_success')) > 0) AS verdict,
    (SELECT count(*) FROM hosts) AS hosts,
    count(*) AS judged,
    count(*) FILTER (success < threshold('host_success')) AS refusing,
    list(host || ' ' || urls ORDER BY urls DESC, host)
        FILTER (success < threshold('host_success'))[:5] AS keys
FROM judged
