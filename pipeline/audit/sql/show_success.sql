-- Share of successes by shard: a dip suggests an outage.
-- Chart: line x=shard y=success
-- Needs: pairs
SELECT shard, share(rows_out, rows_in) AS success FROM ledger WHERE stage = 'pairs' ORDER BY shard
