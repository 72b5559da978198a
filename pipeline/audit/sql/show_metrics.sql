-- The training run's numbers, step by step.
-- Chart: lines x=step y=value series=name
-- Needs: metrics
UNPIVOT (SELECT step, CAST(COLUMNS(* EXCLUDE (step)) AS DOUBLE) FROM metrics)
ON COLUMNS(* EXCLUDE (step)) INTO NAME name VALUE value
ORDER BY name, step
