-- Share of each benchmark's classes that enough captions name.
-- Chart: bar x=covered y=benchmark
-- Needs: nouns
SELECT benchmark, share(count(*) FILTER (captions >= threshold('coverage_captions')), count(*)) AS covered
FROM class_coverage GROUP BY benchmark ORDER BY benchmark
