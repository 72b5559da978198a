-- Every noun is a word: no markup, mojibake, number, lone letter or blank.
-- Needs: nouns
-- Figures: {broken} of {distinct_nouns} different nouns are broken: {share%} of all occurrences
WITH judged AS (
    SELECT text, captions, text IS NULL OR text <> trim(text)
        OR regexp_matches(text, '^[^\p{L}]*$|^[a-zA-Z]$|[<>{}\\|]|&[a-z#0-9]+;|�|Ã.|ã[©¨¢¤¥¼¶±]|â€|https?:|www\.')
        AS broken
    FROM noun_counts
)
SELECT
    verdict(share(sum(captions) FILTER (broken), sum(captions)) > threshold('broken_share'),
            bool_or(broken)) AS verdict,
    count(*) AS distinct_nouns,
    count(*) FILTER (broken) AS broken,
    share(sum(captions) FILTER (broken), sum(captions)) AS share,
    list(coalesce(text, 'null') || ' ' || captions ORDER BY captions DESC, text)
        FILTER (broken)[:5] AS keys
FROM judged
