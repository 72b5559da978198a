-- No two pictures look the same: perceptual hashes (of those that were decoded) are far apart.
-- Needs: pairs
WITH hashed AS (
    SELECT key, sha256, phash, dhash FROM picture_values
    WHERE problem IS NULL AND deviation >= threshold('blank_deviation')
), banded AS (  -- hashes that differ in at most 3 bits agree in one of four bands of 16
    SELECT *, (phash >> CAST(16 * band AS UBIGINT)) & 65535 AS slice FROM hashed, range(4) AS t (band)
), near AS (
    SELECT DISTINCT a.key AS one, b.key AS other
    FROM banded a JOIN banded b ON a.band = b.band AND a.slice = b.slice AND a.key < b.key
    WHERE bit_count(xor(a.phash, b.phash)) <= threshold('near_bits')
        AND bit_count(xor(a.dhash, b.dhash)) <= threshold('near_confirm_bits')
        AND a.sha256 <> b.sha256
)
SELECT
    verdict(share(count(DISTINCT other), (SELECT count(*) FROM hashed)) > threshold('near_share'),
            count(*) > 0) AS verdict,
    (SELECT count(*) FROM hashed) AS hashed,
    (SELECT count(*) FROM pairs WHERE status = 'success') AS pictures,
    count(*) AS near,
    min(one || ' ~ ' || other, 5) AS keys
FROM near
