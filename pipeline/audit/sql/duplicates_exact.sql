-- No picture is in the data twice, byte for byte as served; captions that share a picture do not count.
-- Needs: pairs
-- Figures: {repeats} of {pictures} pictures repeat another, in {groups} groups; largest group: {largest}; further captions of a picture: {captions}
WITH groups AS (
    SELECT sum(copies) AS copies, sum(rows - copies) AS further, min(key) AS first
    FROM repeats GROUP BY sha256
), total AS (
    SELECT count(*) - (SELECT coalesce(sum(further), 0) FROM groups) AS pictures
    FROM pairs WHERE status = 'success'
)
SELECT
    verdict(share(sum(copies - 1), any_value(pictures)) > threshold('duplicate_share'), max(copies) > 1)
        AS verdict,
    (FROM total) AS pictures,
    count(*) FILTER (copies > 1) AS groups,
    coalesce(sum(copies - 1), 0) AS repeats,
    coalesce(max(copies) FILTER (copies > 1), 0) AS largest,
    coalesce(sum(further), 0) AS captions,
    list(first || ' ×' || copies ORDER BY copies DESC, first) FILTER (copies > 1)[:5] AS keys
FROM groups, total
