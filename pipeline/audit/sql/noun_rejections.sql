-- The noun stage keeps most captions.
-- Needs: nouns
-- Figures: {captions} captions, {trainable} trainable; rejected: {rejected%}
WITH reasons AS (SELECT rejected, count(*) AS rows FROM nouns GROUP BY ALL)
SELECT
    verdict(false, share(sum(rows) FILTER (rejected IS NOT NULL), sum(rows))
        > threshold('rejected_share')) AS verdict,
    sum(rows) AS captions,
    coalesce(sum(rows) FILTER (rejected IS NULL), 0) AS trainable,
    share(sum(rows) FILTER (rejected IS NOT NULL), sum(rows)) AS rejected,
    list(rejected || ' ' || rows ORDER BY rows DESC, rejected)
        FILTER (rejected IS NOT NULL) AS keys
FROM reasons
