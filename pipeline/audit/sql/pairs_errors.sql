-- No single error, and no error that a retry would fix, affects a large share of the URLs.
-- Needs: pairs
-- Figures: {reasons} errors, the most frequent in {largest%} of all rows; a retry may fix {retryable%}
WITH reasons AS (
    SELECT coalesce(error, 'no reason') AS reason, count(*) AS rows
    FROM pairs WHERE status <> 'success' GROUP BY ALL
), judged AS (
    SELECT reason, rows, share(rows, (SELECT count(*) FROM pairs)) AS lost,
        regexp_matches(reason, '^(dns|timeout|connection|http_(408|425|429|5..))$') AS retryable
    FROM reasons
)
SELECT
    verdict(false, max(lost) > threshold('error_share')
        OR sum(lost) FILTER (retryable) > threshold('retryable_share')) AS verdict,
    count(*) AS reasons,
    coalesce(max(lost), 0) AS largest,
    coalesce(sum(lost) FILTER (retryable), 0) AS retryable,
    list(reason || ' ' || rows ORDER BY rows DESC, reason) AS keys
FROM judged
