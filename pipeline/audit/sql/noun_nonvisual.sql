-- Most nouns name something that can be seen.
-- Needs: nouns
-- Figures: {nonvisual%} of noun occurrences name nothing visible
WITH abstract(text) AS (
    SELECT unnest(['photo', 'photos', 'image', 'images', 'picture', 'pictures', 'stock', 'vector',
        'illustration', 'background', 'view', 'time', 'day', 'year', 'years', 'week', 'month', 'way',
        'idea', 'ideas', 'part', 'kind', 'type', 'set', 'style', 'design', 'concept', 'love', 'life',
        'thing', 'things', 'lot', 'number', 'name', 'version', 'case', 'fact', 'reason', 'price',
        'sale', 'quality', 'size', 'date', 'place', 'world', 'end', 'beginning', 'moment', 'news',
        'story', 'information', 'article', 'video', 'song', 'music', 'game', 'season', 'event',
        'series', 'history', 'success', 'power', 'energy', 'help', 'work', 'use', 'one', 'ones'])
), judged AS (
    SELECT n.text, captions, abstract.text IS NOT NULL AS nonvisual
    FROM noun_counts n LEFT JOIN abstract ON lower(n.text) = abstract.text
)
SELECT
    verdict(false, share(sum(captions) FILTER (nonvisual), sum(captions))
        > threshold('nonvisual_share')) AS verdict,
    share(sum(captions) FILTER (nonvisual), sum(captions)) AS nonvisual,
    list(text || ' ' || captions ORDER BY captions DESC, text) FILTER (nonvisual)[:5] AS keys
FROM judged
