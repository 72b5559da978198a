-- Captions are in English: Latin letters, no function words of another language.
-- Needs: pairs
-- Figures: in another script: {other_script%}; with words of another language: {other_words%}
WITH judged AS (
    SELECT key,
        length(caption) <> strlen(caption)
            AND regexp_matches(caption, '[^\p{Latin}\p{Common}\p{Inherited}]') AS other_script,
        regexp_matches(caption,
            '(?i)\b(der|die|das|und|mit|für|auf|ein|eine|von|le|la|les|des|une|dans|avec|pour|sur|el|los|las|del|con|para|una|por|il|della|nel|di|uma|com|dos|het|een|van|och|för)\b')
            AND NOT regexp_matches(caption,
            '(?i)\b(the|of|and|with|in|on|a|an|for|to|is|at|by|from|as)\b') AS other_words
    FROM pairs WHERE status = 'success'
)
SELECT
    verdict(false, share(count(*) FILTER (other_script OR other_words), count(*))
        > threshold('foreign_share')) AS verdict,
    share(count(*) FILTER (other_script), count(*)) AS other_script,
    share(count(*) FILTER (other_words), count(*)) AS other_words,
    min(key, 5) FILTER (other_script OR other_words) AS keys
FROM judged
