-- In how many trainable captions each class name of each benchmark occurs as a noun, singular or
-- plural. A name of several words counts where the caption has the whole name and its last word is a
-- noun; `head` counts the captions with that last word as a noun.
WITH written(class, name) AS (  -- names that the benchmarks run together
    VALUES ('pottedplant', 'potted plant'), ('diningtable', 'dining table'),
        ('tvmonitor', 'tv monitor'), ('playingfield', 'playing field')
), named AS (
    SELECT benchmark, class, judged, regexp_replace(coalesce(name, trim(regexp_replace(
        regexp_replace(lower(class), '-(other|stuff|merged)$', ''), '[-_]', ' ', 'g'))),
        ' *\(.*\)', '') AS name
    FROM class_names LEFT JOIN written USING (class)
), distinct_names AS (
    SELECT DISTINCT name, string_split(name, ' ')[-1] AS head, contains(name, ' ') AS phrase
    FROM named
), forms AS (
    SELECT name, phrase, unnest(list_distinct([head, head || 's', head || 'es',
        regexp_replace(head, 'y$', 'ies'), regexp_replace(head, 'person$', 'people'),
        regexp_replace(head, 'man$', 'men')])) AS form
    FROM distinct_names
), counted AS (
    SELECT f.name, count(DISTINCT key) AS head,
        count(DISTINCT key) FILTER (NOT phrase OR contains(caption, f.name)) AS captions
    FROM (SELECT key, caption, unnest(nouns).text AS noun FROM nouns WHERE rejected IS NULL) n
    JOIN forms f ON n.noun = f.form
    GROUP BY f.name
)
SELECT benchmark, class, judged, coalesce(captions, 0) AS captions, coalesce(head, 0) AS head
FROM named LEFT JOIN counted USING (name)
