-- No noun is in a large part of the captions.
-- Needs: nouns
-- Figures: most frequent: {most_frequent}, in {share%} of the captions
WITH judged AS (
    SELECT text, captions,
        share(captions, (SELECT count(*) FROM nouns WHERE rejected IS NULL)) AS part
    FROM noun_counts
)
SELECT
    verdict(false, max(part) > threshold('top_noun_share')) AS verdict,
    max_by(text, captions) AS most_frequent,
    max(part) AS share,
    list(text || ' ' || captions ORDER BY captions DESC, text)
        FILTER (part > threshold('top_noun_share')) AS keys
FROM judged
