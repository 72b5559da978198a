-- Near duplicates, side by side.
-- Chart: pictures
-- Needs: pairs
SELECT unnest([one, other]) AS key, unnest([one || ' ~ ' || other, one || ' ~ ' || other]) AS note
FROM (FROM near_pictures ORDER BY one, other LIMIT 6)
