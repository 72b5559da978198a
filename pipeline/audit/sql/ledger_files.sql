-- The ledger and the files agree: none missing, extra, truncated, unreadable or changed.
-- Figures: {files} files, {bytes} bytes, hashed: {hashed}, missing: {missing}, extra: {extra}, damaged: {damaged}
WITH judged AS (
    SELECT path, CASE
        WHEN recorded_bytes IS NULL THEN 'extra: not in the ledger'
        WHEN problem IS NOT NULL THEN problem
        WHEN bytes < recorded_bytes THEN 'truncated'
        WHEN bytes > recorded_bytes THEN 'longer than recorded'
        WHEN sha256 <> recorded_sha256 THEN 'changed bytes'
    END AS trouble, recorded_bytes IS NULL AS extra
    FROM files
)
SELECT
    verdict(count(*) FILTER (trouble IS NOT NULL AND NOT extra) > 0, bool_or(extra)) AS verdict,
    count(*) AS files,
    (SELECT sum(bytes) FROM files) AS bytes,
    (SELECT count(sha256) FROM files) AS hashed,
    count(*) FILTER (trouble = 'missing') AS missing,
    count(*) FILTER (extra) AS extra,
    count(*) FILTER (trouble IS NOT NULL AND trouble <> 'missing' AND NOT extra) AS damaged,
    list(path || ': ' || trouble ORDER BY extra, path) FILTER (trouble IS NOT NULL) AS keys
FROM judged
