-- Where rows are lost: reasons by stage.
-- Chart: bar x=rows y=reason
SELECT stage || ': ' || entry.key AS reason, sum(entry.value)::BIGINT AS rows
FROM (SELECT stage, unnest(map_entries(rejected)) AS entry FROM ledger)
GROUP BY ALL ORDER BY rows DESC, reason LIMIT 25
