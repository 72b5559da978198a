-- Pairs of decoded pictures that look the same, those that are blank or equal byte for byte aside: the
-- first row of one picture, and every row of another whose first comes later.
WITH banded AS (  -- hashes that differ in at most 3 bits agree in one of four bands of 16
    SELECT key, min(key) OVER (PARTITION BY sha256) AS first, sha256, phash, dhash, band,
        (phash >> CAST(16 * band AS UBIGINT)) & 65535 AS slice
    FROM picture_values, range(4) AS t (band)
    WHERE problem IS NULL AND deviation >= threshold('blank_deviation')
)
SELECT DISTINCT a.key AS one, b.key AS other
FROM banded a JOIN banded b ON a.band = b.band AND a.slice = b.slice AND a.key = a.first
    AND a.first < b.first
WHERE bit_count(xor(a.phash, b.phash)) <= threshold('near_bits')
    AND bit_count(xor(a.dhash, b.dhash)) <= threshold('near_confirm_bits')
    AND a.sha256 <> b.sha256
