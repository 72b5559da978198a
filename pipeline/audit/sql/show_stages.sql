-- What each stage has done.
-- Chart: table
SELECT stage, count(*) AS shards, sum(rows_in)::BIGINT AS rows_in, sum(rows_out)::BIGINT AS rows_out,
    share(sum(rows_in) - sum(rows_out), sum(rows_in)) AS lost, sum(bytes)::BIGINT AS bytes,
    round(sum(seconds), 1) AS seconds, round(sum(rows_in) / nullif(sum(seconds), 0), 1) AS rows_per_second
FROM ledger GROUP BY stage
ORDER BY list_position(['pairs', 'nouns', 'vocabulary', 'features', 'regions'], stage)
