-- A random sample, chosen by the hash of the key.
-- Chart: pictures
-- Needs: pairs
SELECT key, caption AS note FROM picture_values JOIN pairs USING (key)
WHERE picture_values.problem IS NULL ORDER BY hash(key) LIMIT 16
