-- Most captions name at least J different things.
-- Needs: nouns
-- Figures: {mean} nouns per caption on average, at most {most}; too few: {fewer_than_needed%}
SELECT
    verdict(false, share(count(*) FILTER (len(nouns) < threshold('nouns_needed')), count(*))
        > threshold('few_nouns_share')) AS verdict,
    round(avg(len(nouns)), 2) AS mean,
    max(len(nouns)) AS most,
    share(count(*) FILTER (len(nouns) < threshold('nouns_needed')), count(*)) AS fewer_than_needed,
    min(key, 5) FILTER (len(nouns) < threshold('nouns_needed')) AS keys
FROM nouns
