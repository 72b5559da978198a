-- Every trainable caption's tokens start with SOS, end with EOS, contain neither in
-- between, and fit the context length.
-- Needs: nouns
-- Figures: start token {sos}, end token {eos}, wrong captions: {wrong}
WITH trainable AS (
    SELECT key, caption_tokens AS tokens FROM nouns WHERE rejected IS NULL
), marks AS (
    SELECT mode(tokens[1]) AS sos, mode(tokens[-1]) AS eos FROM trainable
), wrong AS (
    SELECT key FROM trainable, marks
    WHERE len(tokens) < 3 OR len(tokens) > context_length()
        OR tokens[1] <> sos OR list_position(tokens, eos) IS DISTINCT FROM len(tokens)
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT sos FROM marks) AS sos,
    (SELECT eos FROM marks) AS eos,
    count(*) AS wrong,
    min(key, 5) AS keys
FROM wrong
