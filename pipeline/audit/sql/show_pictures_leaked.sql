-- Pictures that are, or look like, a benchmark image.
-- Chart: pictures
-- Needs: pairs benchmark_pictures
SELECT key, note FROM (
    SELECT pairs.key, '= ' || parse_filename(b.key) AS note
    FROM pairs JOIN benchmark_pictures b USING (sha256) WHERE status = 'success'
    UNION ALL
    SELECT key, '~ ' || parse_filename(image) FROM near_benchmark)
ORDER BY key LIMIT 12
