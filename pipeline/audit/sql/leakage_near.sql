-- No picture (of those that were decoded) looks the same as a benchmark image.
-- Needs: pairs benchmark_pictures
-- Figures: {leaked} of {images} benchmark images look like one of {hashed} pictures
SELECT
    verdict(share(count(DISTINCT image), (SELECT count(*) FROM benchmark_pictures))
        > threshold('leak_share'), count(*) > 0) AS verdict,
    (SELECT count(*) FROM benchmark_pictures) AS images,
    (SELECT count(phash) FROM picture_values) AS hashed,
    count(DISTINCT image) AS leaked,
    min(key || ' ~ ' || parse_filename(image), 5) AS keys
FROM near_benchmark
