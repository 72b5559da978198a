-- Every shard has gone through each stage that was begun.
-- Figures: shards done: {shards}; missing: {missing}
WITH order_of(stage, upstream) AS (
    VALUES ('nouns', 'pairs'), ('features', 'nouns'), ('regions', 'features')
    UNION SELECT stage, 'nouns' FROM ledger WHERE stage LIKE 'features-%'
), missing AS (
    SELECT o.stage, u.shard
    FROM order_of o JOIN ledger u ON u.stage = o.upstream
    ANTI JOIN ledger d ON d.stage = o.stage AND d.shard = u.shard
    WHERE o.stage IN (SELECT stage FROM ledger)
)
SELECT
    verdict(false, count(*) > 0) AS verdict,
    (SELECT list(stage ORDER BY shards DESC, stage) FROM (
        SELECT stage || ' ' || count(*) AS stage, count(*) AS shards FROM ledger GROUP BY ledger.stage
    )) AS shards,
    count(*) AS missing,
    list(printf('%s/%05d', stage, shard) ORDER BY stage, shard) AS keys
FROM missing
