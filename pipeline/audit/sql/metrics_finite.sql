-- Every number that the training run logged is finite, and the run did not wait for data.
-- Needs: metrics
-- Figures: last step {last_step}, {samples_per_second} samples per second, {data_wait_share%} of the time waiting for data; numbers that are not finite: {nonfinite}
WITH logged AS (
    UNPIVOT (SELECT step, CAST(COLUMNS(* EXCLUDE (step)) AS DOUBLE) FROM metrics)
    ON COLUMNS(* EXCLUDE (step)) INTO NAME name VALUE value
)
SELECT
    verdict(count(*) FILTER (NOT isfinite(value)) > 0,
        avg(value) FILTER (name = 'data_wait_share') > threshold('data_wait_share')) AS verdict,
    max(step) AS last_step,
    round(median(value) FILTER (name = 'samples_per_second'), 1) AS samples_per_second,
    round(avg(value) FILTER (name = 'data_wait_share'), 4) AS data_wait_share,
    count(*) FILTER (NOT isfinite(value)) AS nonfinite,
    min(printf('step %d: %s', step, name), 5) FILTER (NOT isfinite(value)) AS keys
FROM logged
