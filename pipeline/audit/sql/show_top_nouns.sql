-- The most frequent nouns.
-- Chart: bar x=captions y=noun
-- Needs: nouns
SELECT text AS noun, captions FROM noun_counts ORDER BY captions DESC, text LIMIT 40
