-- Most distinct nouns occur more than once.
-- Needs: nouns
-- Figures: {distinct_nouns} different nouns, {in_100_captions} in 100 captions or more; {once%} occur once; the first 100 are {top_100_share%} of all occurrences
WITH ranked AS (SELECT *, row_number() OVER (ORDER BY captions DESC, text) AS rank FROM noun_counts)
SELECT
    verdict(false, share(count(*) FILTER (captions = 1), count(*)) > threshold('hapax_share'))
        AS verdict,
    count(*) AS distinct_nouns,
    count(*) FILTER (captions >= 100) AS in_100_captions,
    share(count(*) FILTER (captions = 1), count(*)) AS once,
    share(sum(captions) FILTER (rank <= 100), sum(captions)) AS top_100_share,
    min(text, 5) FILTER (captions = 1) AS keys
FROM ranked
