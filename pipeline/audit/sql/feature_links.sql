-- Every feature row has at least J nouns, all in the vocabulary, with spans inside its caption, and
-- the tokens of its row in nouns.
-- Needs: features vocabulary
-- Figures: {rows} rows, nouns missing from the vocabulary: {unknown_nouns}, wrong rows: {wrong}
WITH nouns_of AS (SELECT DISTINCT unnest(noun_ids) AS id FROM features),
unknown AS (SELECT coalesce(list(id), []) AS ids FROM nouns_of ANTI JOIN vocabulary USING (id)),
wrong AS (
    SELECT key FROM features, unknown
    WHERE len(noun_ids) < threshold('nouns_needed') OR list_has_any(noun_ids, unknown.ids)
        OR len(list_filter(spans, lambda span: span.noun < 0 OR span.noun >= len(noun_ids)
            OR span.start < 1 OR span."end" <= span.start
            OR span."end" >= len(caption_tokens))) > 0
    UNION
    SELECT key FROM features f JOIN nouns n USING (key) WHERE f.caption_tokens <> n.caption_tokens
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM features) AS rows,
    (SELECT len(ids) FROM unknown) AS unknown_nouns,
    count(*) AS wrong,
    min(key, 5) AS keys
FROM wrong
