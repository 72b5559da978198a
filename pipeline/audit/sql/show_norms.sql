-- Mean norm of the image tokens of a row.
-- Chart: bar x=norm y=rows
-- Needs: features
WITH bounds AS (SELECT approx_quantile(image_norm_mean, 0.5) / 20 AS step FROM feature_values)
SELECT round(step * round(image_norm_mean / step), 3) AS norm, count(*) AS rows
FROM feature_values, bounds WHERE image_norm_mean IS NOT NULL AND isfinite(image_norm_mean)
GROUP BY norm ORDER BY norm LIMIT 200
