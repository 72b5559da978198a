-- Few captions are empty, short or very long.
-- Needs: pairs
-- Figures: {mean_words} words on average, median {median_characters} characters, longest {longest}; empty: {empty}, short: {short%}, long: {long%}
WITH judged AS (
    SELECT key, length(coalesce(caption, '')) AS characters,
        len(string_split(trim(coalesce(caption, '')), ' ')) AS words
    FROM pairs WHERE status = 'success'
)
SELECT
    verdict(false, share(count(*) FILTER (words < threshold('caption_short')
            OR characters > threshold('caption_long')), count(*))
        > threshold('caption_length_share')) AS verdict,
    round(avg(words), 1) AS mean_words,
    approx_quantile(characters, 0.5) AS median_characters,
    max(characters) AS longest,
    count(*) FILTER (characters = 0) AS empty,
    share(count(*) FILTER (words < threshold('caption_short')), count(*)) AS short,
    share(count(*) FILTER (characters > threshold('caption_long')), count(*)) AS long,
    min(key, 5) FILTER (words < threshold('caption_short')
        OR characters > threshold('caption_long')) AS keys
FROM judged
