-- All shards of a stage were made with the same settings.
-- Figures: {settings} settings over {stages} stages
WITH counted AS (
    SELECT stage, settings, count(*) AS shards, min(shard) AS first FROM ledger GROUP BY ALL
), mixed AS (
    SELECT * FROM counted WHERE stage IN (SELECT stage FROM counted GROUP BY stage HAVING count(*) > 1)
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM counted) AS settings,
    (SELECT count(DISTINCT stage) FROM counted) AS stages,
    list(printf('%s: %d shards with %s, first %05d', stage, shards, settings, first)
        ORDER BY stage, shards, first) AS keys
FROM mixed
