-- A picture's row has its size and hash, a failed one its reason, and every row its URL.
-- Needs: pairs
SELECT
    verdict(count(*) > 0, false) AS verdict,
    count(*) AS incomplete,
    min(key, 5) AS keys
FROM pairs
WHERE status NOT IN ('success', 'failed') OR url IS NULL
    OR (status = 'success' AND (error IS NOT NULL OR width IS NULL OR height IS NULL
        OR original_width IS NULL OR original_height IS NULL OR sha256 IS NULL
        OR least(width, height, original_width, original_height) < 1))
    OR (status = 'failed' AND error IS NULL)
