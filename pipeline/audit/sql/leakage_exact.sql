-- No benchmark image is in the data byte for byte.
-- Needs: pairs benchmark_pictures
-- Figures: {leaked} of {images} benchmark images are in the data
WITH leaked AS (
    SELECT pairs.key, b.key AS image FROM pairs JOIN benchmark_pictures b USING (sha256)
    WHERE status = 'success'
)
SELECT
    verdict(count(*) > 0, false) AS verdict,
    (SELECT count(*) FROM benchmark_pictures) AS images,
    count(DISTINCT image) AS leaked,
    min(key || ' = ' || parse_filename(image), 5) AS keys
FROM leaked
