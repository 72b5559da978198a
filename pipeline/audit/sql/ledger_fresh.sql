-- Every shard was made from the current version of its input.
-- Figures: {compared} shards compared with their input, out of date: {stale}
SELECT
    verdict(false, count(*) FILTER (input <> expected_input) > 0) AS verdict,
    count(expected_input) AS compared,
    count(*) FILTER (input <> expected_input) AS stale,
    list(printf('%s/%05d', stage, shard) ORDER BY stage, shard)
        FILTER (input <> expected_input) AS keys
FROM ledger
