-- Different nouns of the captions (the last bar: 15 and more).
-- Chart: bar x=nouns y=captions
-- Needs: nouns
SELECT least(len(nouns), 15) AS nouns, count(*) AS captions FROM nouns GROUP BY ALL ORDER BY nouns
