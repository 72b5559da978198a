-- The most repeated byte for byte, their further captions aside.
-- Chart: pictures
-- Needs: pairs
SELECT min(key) AS key, '×' || sum(copies) AS note FROM repeats
GROUP BY sha256 HAVING sum(copies) > 1 ORDER BY sum(copies) DESC, key LIMIT 8
