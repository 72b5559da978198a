-- Every noun of a trainable caption covers tokens strictly between SOS and EOS.
-- Needs: nouns
-- Figures: captions with a wrong span: {wrong}
WITH wrong AS (
    SELECT key FROM nouns
    WHERE rejected IS NULL AND len(list_filter(nouns, lambda noun:
        len(noun.spans) = 0 OR len(list_filter(noun.spans, lambda span:
            span.start < 1 OR span."end" <= span.start OR span."end" >= len(caption_tokens)
        )) > 0)) > 0
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    count(*) AS wrong,
    min(key, 5) AS keys
FROM wrong
