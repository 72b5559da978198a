-- Captions are mostly different, and no single caption is very frequent.
-- Needs: pairs
-- Figures: {distinct_captions} different captions; {repeats%} repeat another; the most frequent occurs {most_frequent} times
WITH groups AS (
    SELECT hash(caption) AS h, count(*) AS copies, min(key) AS first
    FROM pairs WHERE status = 'success' GROUP BY 1
)
SELECT
    verdict(false, share(sum(copies - 1), sum(copies)) > threshold('caption_repeat_share')
        OR share(max(copies), sum(copies)) > threshold('caption_top_share')) AS verdict,
    count(*) AS distinct_captions,
    share(sum(copies - 1), sum(copies)) AS repeats,
    max(copies) AS most_frequent,
    max_by(first || ' ×' || copies, copies, 5) FILTER (copies > 1) AS keys
FROM groups
