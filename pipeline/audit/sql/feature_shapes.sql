-- Every caption has one state of the text encoder's width per token.
-- Needs: features
-- Figures: text width {text_width}, wrong rows: {wrong}
WITH widths AS (
    SELECT f.key, state_values / len(caption_tokens) AS width
    FROM features f JOIN feature_values USING (key)
), declared AS (
    SELECT coalesce((SELECT CAST(value AS DOUBLE) FROM settings
        WHERE stage = 'features' AND name = 'clip.text_width'), mode(width)) AS width FROM widths
)
SELECT
    verdict(count(*) FILTER (w.width IS DISTINCT FROM d.width) > 0, false) AS verdict,
    any_value(d.width) AS text_width,
    count(*) FILTER (w.width IS DISTINCT FROM d.width) AS wrong,
    min(key, 5) FILTER (w.width IS DISTINCT FROM d.width) AS keys
FROM widths w, declared d
