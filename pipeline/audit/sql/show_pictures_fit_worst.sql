-- Captions that fit their pictures worst.
-- Chart: pictures
-- Needs: features pairs
SELECT f.key, printf('%.3f', clip_score) || ' ' || p.caption[:60] AS note
FROM features f JOIN pairs p USING (key) WHERE clip_score IS NOT NULL AND isfinite(clip_score)
ORDER BY clip_score ASC, f.key LIMIT 8
