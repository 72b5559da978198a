-- The smallest pictures as served.
-- Chart: pictures
-- Needs: pairs
SELECT key, original_width || '×' || original_height AS note FROM pairs WHERE status = 'success'
ORDER BY least(original_width, original_height), key LIMIT 8
