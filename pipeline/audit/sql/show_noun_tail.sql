-- The long tail: in how many captions the noun of a rank occurs (both axes logarithmic).
-- Chart: line x=rank y=captions log
-- Needs: nouns
WITH ranked AS (
    SELECT captions, row_number() OVER (ORDER BY captions DESC, text) AS rank FROM noun_counts
)
SELECT rank, captions FROM ranked
WHERE rank = 1 OR floor(8 * log2(rank)) > floor(8 * log2(rank - 1)) ORDER BY rank
