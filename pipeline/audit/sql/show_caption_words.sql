-- Words of the captions (the last bar: 40 and more).
-- Chart: bar x=words y=captions
-- Needs: pairs
SELECT least(len(string_split(trim(caption), ' ')), 40) AS words, count(*) AS captions
FROM pairs WHERE status = 'success' GROUP BY words ORDER BY words
