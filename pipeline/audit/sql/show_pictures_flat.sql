-- The flattest (of those that were decoded): least deviation of gray values.
-- Chart: pictures
-- Needs: pairs
SELECT key, 'deviation ' || round(deviation, 1) AS note FROM picture_values
WHERE deviation IS NOT NULL ORDER BY deviation, key LIMIT 8
