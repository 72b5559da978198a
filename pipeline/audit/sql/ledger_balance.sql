-- At every stage and shard rows in = rows out + rows rejected, the table has those rows, and the
-- next stage starts from them.
-- Figures: {shards} shards, {rows_in} rows in, {rows_out} rows out, unbalanced shards: {unbalanced}
WITH tables AS (
    SELECT stage, shard, sum(rows) AS rows
    FROM files WHERE recorded_bytes IS NOT NULL AND problem IS NULL GROUP BY ALL
), records AS (
    SELECT *, coalesce(list_sum(map_values(rejected)), 0) AS lost,
        CASE WHEN stage IN ('pairs', 'nouns') THEN rows_in ELSE rows_out END AS expected_rows
    FROM ledger LEFT JOIN tables USING (stage, shard)
), wrong AS (
    SELECT stage, shard FROM records WHERE rows_in <> rows_out + lost OR rows <> expected_rows
    UNION
    SELECT n.stage, n.shard FROM records n JOIN records p USING (shard)
    WHERE n.stage = 'nouns' AND p.stage = 'pairs'
        AND n.input = n.expected_input AND n.rows_in <> p.rows_out
    UNION
    SELECT f.stage, f.shard FROM records f JOIN records n USING (shard)
    WHERE f.stage LIKE 'features%' AND n.stage = 'nouns'
        AND f.input = f.expected_input AND f.rows_in <> n.rows_out
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM records) AS shards,
    (SELECT sum(rows_in) FROM records WHERE stage = 'pairs') AS rows_in,
    (SELECT arg_max(total, depth) FROM (
        SELECT sum(rows_out) AS total, list_position(['pairs', 'nouns', 'features'], stage) AS depth
        FROM records WHERE stage IN ('pairs', 'nouns', 'features') GROUP BY stage)) AS rows_out,
    count(*) AS unbalanced,
    list(printf('%s/%05d', stage, shard) ORDER BY stage, shard) AS keys
FROM wrong
