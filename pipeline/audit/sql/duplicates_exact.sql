-- No picture occurs twice byte for byte, as served.
-- Needs: pairs
-- Figures: {repeats} of {pictures} pictures repeat another, in {groups} groups; largest group: {largest}
WITH suspects AS (
    SELECT key, sha256 FROM pairs
    WHERE status = 'success' AND hash(sha256) IN (
        SELECT hash(sha256) FROM pairs WHERE status = 'success' GROUP BY 1 HAVING count(*) > 1)
), groups AS (
    SELECT sha256, count(*) AS copies, min(key) AS first FROM suspects
    GROUP BY sha256 HAVING count(*) > 1
), total AS (SELECT count(*) AS pictures FROM pairs WHERE status = 'success')
SELECT
    verdict(share(sum(copies - 1), any_value(pictures)) > threshold('duplicate_share'), count(*) > 0)
        AS verdict,
    (FROM total) AS pictures,
    count(*) FILTER (copies IS NOT NULL) AS groups,
    coalesce(sum(copies - 1), 0) AS repeats,
    coalesce(max(copies), 0) AS largest,
    list(first || ' ×' || copies ORDER BY copies DESC, first)[:5] AS keys
FROM groups, total
