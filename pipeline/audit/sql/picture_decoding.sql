-- Stored pictures decode, to the size their row states (of those that were decoded).
-- Needs: pairs
-- Figures: {pictures} pictures decoded, undecodable: {undecodable}, different from their row: {wrong}
WITH wrong AS (
    SELECT p.key FROM picture_values p JOIN pairs USING (key)
    WHERE p.problem IS NOT NULL OR p.width <> pairs.width OR p.height <> pairs.height
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM picture_values) AS pictures,
    (SELECT count(problem) FROM picture_values) AS undecodable,
    count(*) AS wrong,
    min(key, 5) AS keys
FROM wrong
