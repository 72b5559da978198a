-- Shorter side of the pictures as served, pixels.
-- Chart: bar x=pixels y=pictures
-- Needs: pairs
SELECT CAST(32 * floor(least(original_width, original_height, 2047) / 32) AS INTEGER) AS pixels,
    count(*) AS pictures
FROM pairs WHERE status = 'success' GROUP BY pixels ORDER BY pixels
