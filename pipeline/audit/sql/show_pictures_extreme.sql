-- The most extreme aspect ratios.
-- Chart: pictures
-- Needs: pairs
SELECT key, original_width || '×' || original_height AS note FROM pairs WHERE status = 'success'
ORDER BY greatest(original_width, original_height)
    / greatest(least(original_width, original_height), 1) DESC, key LIMIT 8
