-- No picture (of those that were decoded) looks the same as a benchmark image.
-- Needs: pairs benchmark_pictures
WITH banded AS (
    SELECT 'pairs' AS side, *, (phash >> CAST(16 * band AS UBIGINT)) & 65535 AS slice
    FROM picture_values, range(4) AS t (band)
    WHERE problem IS NULL AND deviation >= threshold('blank_deviation')
    UNION ALL
    SELECT 'benchmark', *, (phash >> CAST(16 * band AS UBIGINT)) & 65535
    FROM benchmark_pictures, range(4) AS t (band)
    WHERE problem IS NULL AND deviation >= threshold('blank_deviation')
), near AS (
    SELECT DISTINCT a.key, b.key AS image
    FROM banded a JOIN banded b ON a.band = b.band AND a.slice = b.slice
    WHERE a.side = 'pairs' AND b.side = 'benchmark' AND a.sha256 <> b.sha256
        AND bit_count(xor(a.phash, b.phash)) <= threshold('near_bits')
        AND bit_count(xor(a.dhash, b.dhash)) <= threshold('near_confirm_bits')
)
SELECT
    verdict(share(count(DISTINCT image), (SELECT count(*) FROM benchmark_pictures))
        > threshold('leak_share'), count(*) > 0) AS verdict,
    (SELECT count(*) FROM benchmark_pictures) AS images,
    (SELECT count(*) FROM picture_values) AS hashed,
    count(DISTINCT image) AS leaked,
    min(key || ' ~ ' || parse_filename(image), 5) AS keys
FROM near
