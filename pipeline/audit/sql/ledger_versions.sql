-- All shards of a stage were made with the same versions of the libraries.
-- Figures: {versions} sets of versions over {stages} stages
WITH counted AS (
    SELECT stage, CAST(versions AS VARCHAR) AS versions, count(*) AS shards, min(shard) AS first
    FROM ledger GROUP BY ALL
), mixed AS (
    SELECT * FROM counted WHERE stage IN (SELECT stage FROM counted GROUP BY stage HAVING count(*) > 1)
)
SELECT
    verdict(false, count(*) > 0) AS verdict,
    (SELECT count(*) FROM counted) AS versions,
    (SELECT count(DISTINCT stage) FROM counted) AS stages,
    list(printf('%s: %d shards with %s, first %05d', stage, shards, versions, first)
        ORDER BY stage, shards, first) AS keys
FROM mixed
