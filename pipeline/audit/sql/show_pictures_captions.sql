-- Pictures with the most captions.
-- Chart: pictures
-- Needs: pairs
SELECT key, (rows - copies + 1) || ' captions' AS note FROM repeats
WHERE rows > copies ORDER BY rows - copies DESC, key LIMIT 8
