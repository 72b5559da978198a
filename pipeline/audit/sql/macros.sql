-- Words that the questions share.
CREATE MACRO threshold(wanted) AS (SELECT value FROM thresholds WHERE name = wanted);
CREATE MACRO verdict(failed, warned) AS
    CASE WHEN failed THEN 'fail' WHEN warned THEN 'warn' ELSE 'pass' END;
CREATE MACRO share(part, whole) AS round(coalesce(part, 0) / greatest(whole, 1), 4);
CREATE MACRO host_of(url) AS split_part(split_part(url, '/', 3), ':', 1);
CREATE MACRO shard_of(key) AS CAST(key[:5] AS INTEGER);
-- where a picture is from: a tar's or folder's sample, or a URL as a fetch would ask for it
CREATE MACRO sample_of(url) AS CASE WHEN regexp_matches(url, '^\s*https?:', 'i')
    THEN lower(regexp_extract(url, '^\s*([^/]*//[^/?#]*)', 1))
        || replace(trim(regexp_extract(url, '//[^/?#]*([^#]*)', 1)), ' ', '%20')
    ELSE url END;
-- one row for each place that a picture of several rows is from: its rows, how many of them are
-- copies (the picture once, and rows whose caption it has already), and the first key
CREATE VIEW repeats AS
    SELECT sha256, sample_of(url) AS sample, min(key) AS key, count(*) AS rows,
        1 + count(*) - count(DISTINCT coalesce(caption, '')) AS copies
    FROM pairs
    WHERE status = 'success' AND hash(sha256) IN (
        SELECT hash(sha256) FROM pairs WHERE status = 'success' GROUP BY 1 HAVING count(*) > 1)
    GROUP BY sha256, sample;
-- shards whose records are there, made from today's input, and whose files can be read
CREATE VIEW sound_shards AS
    SELECT stage, shard
    FROM ledger
    SEMI JOIN (SELECT stage, shard FROM files
               WHERE recorded_bytes IS NOT NULL AND problem IS NULL AND schema_problem IS NULL)
        USING (stage, shard)
    WHERE expected_input IS NULL OR input = expected_input;
-- one row a trainable pair: what a selection chooses from; `row` counts within the shard's features
CREATE VIEW trainable AS
    SELECT f.key, shard_of(f.key) AS shard,
        row_number() OVER (PARTITION BY shard_of(f.key) ORDER BY f.key) - 1 AS row,
        p.url, n.caption, list_transform(n.nouns, lambda noun: noun.text) AS nouns,
        p.width, p.height, p.original_width, p.original_height, p.sha256,
        len(f.caption_tokens) AS tokens, f.clip_score
    FROM features f
    LEFT JOIN pairs p USING (key)
    LEFT JOIN nouns n USING (key);
-- how many token positions the text encoder has
CREATE MACRO context_length() AS coalesce(
    (SELECT min(CAST(value AS INTEGER)) FROM settings WHERE name LIKE '%context_length'), 77);
