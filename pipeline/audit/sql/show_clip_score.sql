-- How well captions fit their pictures: cosine of CLIP's embeddings.
-- Chart: bar x=clip_score y=pairs
-- Needs: features
SELECT round(clip_score, 2) AS clip_score, count(*) AS pairs
FROM features WHERE clip_score IS NOT NULL AND isfinite(clip_score)
GROUP BY 1 ORDER BY 1
