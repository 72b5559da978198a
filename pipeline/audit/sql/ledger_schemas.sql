-- Every file has the columns, types and shapes that its table declares.
-- Figures: {files} files, different from their declaration: {different}
SELECT
    verdict(count(schema_problem) > 0, false) AS verdict,
    count(*) AS files,
    count(schema_problem) AS different,
    list(path || ': ' || schema_problem ORDER BY path) FILTER (schema_problem IS NOT NULL) AS keys
FROM files
WHERE problem IS NULL
