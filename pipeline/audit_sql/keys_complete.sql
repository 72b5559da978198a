-- No key is missing between the tables: a row of nouns for every picture, a row of features for
-- every trainable caption, and none without its origin.
-- Needs: pairs nouns
WITH tagged AS (
    SELECT shard FROM sound_shards WHERE stage = 'pairs'
    INTERSECT SELECT shard FROM sound_shards WHERE stage = 'nouns'
), encoded AS (
    SELECT shard FROM tagged INTERSECT SELECT shard FROM sound_shards WHERE stage = 'features'
), pictures AS (
    SELECT key FROM pairs WHERE status = 'success' AND shard_of(key) IN (FROM tagged)
), trainable AS (
    SELECT key FROM nouns WHERE rejected IS NULL AND shard_of(key) IN (FROM encoded)
), captions AS (
    SELECT key FROM nouns WHERE shard_of(key) IN (FROM tagged)
), rows AS (
    SELECT key FROM features WHERE shard_of(key) IN (FROM encoded)
), missing AS (
    SELECT key, 'no row in nouns' AS trouble FROM pictures ANTI JOIN captions USING (key)
    UNION ALL
    SELECT key, 'in nouns without a picture' FROM captions ANTI JOIN pictures USING (key)
    UNION ALL
    SELECT key, 'in features without a trainable caption' FROM rows ANTI JOIN trainable USING (key)
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM tagged) AS shards,
    count(*) AS missing,
    min(key || ' ' || trouble, 5) AS keys
FROM missing
