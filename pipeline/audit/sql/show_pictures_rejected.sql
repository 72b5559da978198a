-- Captions that the noun stage rejects.
-- Chart: pictures
-- Needs: nouns
SELECT key, rejected || ': ' || caption AS note FROM nouns
WHERE rejected IS NOT NULL ORDER BY hash(key) LIMIT 8
