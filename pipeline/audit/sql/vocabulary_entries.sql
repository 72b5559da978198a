-- Every noun of the vocabulary occurs once and has its text's id, tokens, and a finite knowledge
-- embedding of norm at most 1 (the mean of unit vectors).
-- Needs: vocabulary
-- Figures: {nouns} nouns, mean norm {mean_norm}, wrong: {wrong}
WITH wrong AS (
    SELECT text FROM vocabulary v JOIN vocabulary_values w USING (id)
    WHERE id <> expected_id OR len(noun_tokens) = 0 OR count < 1
        OR isnan(knowledge_norm) OR knowledge_norm <= 0 OR knowledge_norm > 1.001
    UNION
    SELECT any_value(text) FROM vocabulary GROUP BY id HAVING count(*) > 1
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM vocabulary) AS nouns,
    (SELECT round(avg(knowledge_norm), 3) FROM vocabulary_values) AS mean_norm,
    count(*) AS wrong,
    min(text, 5) AS keys
FROM wrong
