-- No two pictures look the same: perceptual hashes (of those that were decoded) are far apart.
-- Needs: pairs
-- Figures: {near} pairs look the same; {hashed} of {pictures} pictures compared
SELECT
    verdict(share(count(DISTINCT other), (SELECT count(phash) FROM picture_values))
        > threshold('near_share'), count(*) > 0) AS verdict,
    (SELECT count(phash) FROM picture_values) AS hashed,
    (SELECT count(*) FROM pairs WHERE status = 'success') AS pictures,
    count(*) AS near,
    min(one || ' ~ ' || other, 5) AS keys
FROM near_pictures
