-- No key occurs twice in a table.
-- Needs: pairs
-- Figures: repeated keys: {repeated}, in {rows} rows
WITH repeated AS (
    SELECT 'pairs' AS place, key FROM pairs
    WHERE hash(key) IN (SELECT hash(key) FROM pairs GROUP BY 1 HAVING count(*) > 1)
    UNION ALL
    SELECT 'nouns', key FROM nouns
    WHERE hash(key) IN (SELECT hash(key) FROM nouns GROUP BY 1 HAVING count(*) > 1)
    UNION ALL
    SELECT 'features', key FROM features
    WHERE hash(key) IN (SELECT hash(key) FROM features GROUP BY 1 HAVING count(*) > 1)
), counted AS (
    SELECT place, key, count(*) AS rows FROM repeated GROUP BY ALL HAVING count(*) > 1
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    count(*) AS repeated,
    coalesce(sum(rows), 0) AS rows,
    min(key || ' in ' || place, 5) AS keys
FROM counted
