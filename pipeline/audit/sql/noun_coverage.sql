-- The captions name the classes of the benchmarks: each class name occurs as a noun.
-- Needs: nouns
-- Figures: {uncovered} of {classes} class names are in too few captions; covered: {covered}
WITH coverage AS (SELECT * FROM class_coverage),
uncovered AS (SELECT * FROM coverage WHERE captions < threshold('coverage_captions'))
SELECT
    verdict(false, bool_or(judged)) AS verdict,
    (SELECT count(*) FROM coverage) AS classes,
    (SELECT list(benchmark || ' ' || covered || '/' || classes ORDER BY benchmark) FROM (
        SELECT benchmark, count(*) AS classes,
            count(*) FILTER (captions >= threshold('coverage_captions')) AS covered
        FROM coverage GROUP BY benchmark)) AS covered,
    count(*) AS uncovered,
    list(benchmark || ': ' || class || ' ' || captions ORDER BY judged DESC, captions, benchmark, class)[:5] AS keys
FROM uncovered
