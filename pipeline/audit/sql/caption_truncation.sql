-- Few captions are cut at the text encoder's context length.
-- Needs: nouns
-- Figures: {mean_tokens} tokens on average, room for {context_length}; cut: {truncated%}
SELECT
    verdict(false, share(count(*) FILTER (len(caption_tokens) >= context_length()), count(*))
        > threshold('truncated_share')) AS verdict,
    any_value(context_length()) AS context_length,
    round(avg(len(caption_tokens)), 1) AS mean_tokens,
    share(count(*) FILTER (len(caption_tokens) >= context_length()), count(*)) AS truncated,
    min(key, 5) FILTER (len(caption_tokens) >= context_length()) AS keys
FROM nouns
