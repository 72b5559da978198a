-- A picture's row has its bytes, size and hash, a failed one its reason, and every row its URL.
-- Needs: pairs
-- Figures: incomplete rows: {incomplete}, pictures without bytes: {without_bytes}
WITH wrong AS (
    SELECT key FROM pairs
    WHERE status NOT IN ('success', 'failed') OR url IS NULL
        OR (status = 'success' AND (error IS NOT NULL OR width IS NULL OR height IS NULL
            OR original_width IS NULL OR original_height IS NULL OR sha256 IS NULL
            OR least(width, height, original_width, original_height) < 1))
        OR (status = 'failed' AND error IS NULL)
), stored AS (  -- the footers count the bytes that are there, so no picture has to be read
    SELECT path, rows_out - pictures AS lost
    FROM files JOIN ledger USING (stage, shard)
    WHERE stage = 'pairs' AND problem IS NULL AND pictures <> rows_out
)
SELECT
    verdict(count(*) > 0 OR (SELECT count(*) FROM stored) > 0, false) AS verdict,
    count(*) AS incomplete,
    (SELECT coalesce(sum(lost), 0) FROM stored) AS without_bytes,
    min(key, 5) || (SELECT coalesce(list(path || ': ' || lost || ' without bytes' ORDER BY path), [])
        FROM stored) AS keys
FROM wrong
