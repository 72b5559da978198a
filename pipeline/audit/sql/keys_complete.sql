-- No key is missing between the tables: a row of nouns for every picture, a row of features for
-- every trainable caption except those that the ledger counts as rejected, and no row without its source.
-- Needs: pairs nouns
-- Figures: {shards} shards compared, missing keys: {missing}
WITH tagged AS (
    SELECT shard FROM sound_shards WHERE stage = 'pairs'
    INTERSECT SELECT shard FROM sound_shards WHERE stage = 'nouns'
), encoded AS (
    SELECT shard FROM tagged INTERSECT SELECT shard FROM sound_shards WHERE stage = 'features'
), pictures AS (
    SELECT key FROM pairs WHERE status = 'success' AND shard_of(key) IN (FROM tagged)
), trainable AS (
    SELECT key, shard_of(key) AS shard FROM nouns
    WHERE rejected IS NULL AND shard_of(key) IN (FROM encoded)
), captions AS (
    SELECT key FROM nouns WHERE shard_of(key) IN (FROM tagged)
), rows AS (
    SELECT key FROM features WHERE shard_of(key) IN (FROM encoded)
), unencoded AS (
    SELECT key, shard, count(*) OVER (PARTITION BY shard) AS lost
    FROM trainable ANTI JOIN rows USING (key)
), missing AS (
    SELECT key, 'no row in nouns' AS trouble FROM pictures ANTI JOIN captions USING (key)
    UNION ALL
    SELECT key, 'in nouns without a picture' FROM captions ANTI JOIN pictures USING (key)
    UNION ALL
    SELECT key, 'no row in features' FROM unencoded JOIN ledger USING (shard)
    WHERE stage = 'features' AND lost <> coalesce(list_sum(map_values(rejected)), 0)
    UNION ALL
    SELECT key, 'in features without a trainable caption' FROM rows ANTI JOIN trainable USING (key)
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM tagged) AS shards,
    count(*) AS missing,
    min(key || ' ' || trouble, 5) AS keys
FROM missing
