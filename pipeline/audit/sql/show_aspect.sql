-- Width over height as served.
-- Chart: bar x=aspect y=pictures
-- Needs: pairs
SELECT round(least(greatest(original_width / greatest(original_height, 1), 0.2), 5), 1) AS aspect,
    count(*) AS pictures
FROM pairs WHERE status = 'success' GROUP BY aspect ORDER BY aspect
