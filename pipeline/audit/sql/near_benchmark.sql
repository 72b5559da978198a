-- Decoded pictures that look the same as a benchmark image, without being it byte for byte.
WITH ours AS (
    SELECT key, sha256, phash, dhash, band,
        (phash >> CAST(16 * band AS UBIGINT)) & 65535 AS slice
    FROM picture_values, range(4) AS t (band)
    WHERE problem IS NULL AND deviation >= threshold('blank_deviation')
), theirs AS (
    SELECT key, sha256, phash, dhash, band,
        (phash >> CAST(16 * band AS UBIGINT)) & 65535 AS slice
    FROM benchmark_pictures, range(4) AS t (band)
    WHERE problem IS NULL AND deviation >= threshold('blank_deviation')
)
SELECT DISTINCT a.key, b.key AS image
FROM ours a JOIN theirs b ON a.band = b.band AND a.slice = b.slice
WHERE bit_count(xor(a.phash, b.phash)) <= threshold('near_bits')
    AND bit_count(xor(a.dhash, b.dhash)) <= threshold('near_confirm_bits')
    AND a.sha256 <> b.sha256
