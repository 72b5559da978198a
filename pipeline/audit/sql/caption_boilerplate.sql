-- Few captions are boilerplate: file names, calls to click, shop and stock-photo phrases.
-- Needs: pairs
-- Figures: boilerplate: {captions} captions, {boilerplate%} of all
WITH judged AS (
    SELECT key, regexp_matches(lower(caption),
        'click (here|to)|stock (photo|image|vector|illustration|footage)|royalty[- ]free|all rights reserved|copyright|©|getty ?images|shutterstock|image may contain|free shipping|add to cart|\.(jpe?g|png|gif|webp)\b|^(img|dsc|dscn|image|photo|picture)[ _-]*[0-9]+$|https?://|www\.')
        AS boilerplate
    FROM pairs WHERE status = 'success'
)
SELECT
    verdict(false, share(count(*) FILTER (boilerplate), count(*))
        > threshold('boilerplate_share')) AS verdict,
    count(*) FILTER (boilerplate) AS captions,
    share(count(*) FILTER (boilerplate), count(*)) AS boilerplate,
    min(key, 5) FILTER (boilerplate) AS keys
FROM judged
