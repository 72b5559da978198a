-- In how many trainable captions each noun occurs.
SELECT noun.text AS text, count(*) AS captions
FROM (SELECT unnest(nouns) AS noun FROM nouns WHERE rejected IS NULL)
GROUP BY ALL
