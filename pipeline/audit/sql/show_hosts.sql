-- The hosts with the most URLs.
-- Chart: table
-- Needs: pairs
SELECT host_of(url) AS host, count(*) AS urls, count(*) FILTER (status = 'success') AS pictures,
    share(count(*) FILTER (status = 'success'), count(*)) AS success,
    mode(error) AS most_frequent_error
FROM pairs GROUP BY host ORDER BY urls DESC, host LIMIT 50
