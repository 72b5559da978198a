-- The pictures repeated most often, byte for byte.
-- Chart: pictures
-- Needs: pairs
WITH repeated AS (
    SELECT hash(sha256) AS h FROM pairs WHERE status = 'success' GROUP BY h HAVING count(*) > 1
)
SELECT min(key) AS key, '×' || count(*) AS note FROM pairs
WHERE status = 'success' AND hash(sha256) IN (FROM repeated)
GROUP BY sha256 HAVING count(*) > 1 ORDER BY count(*) DESC, key LIMIT 8
