-- In how many captions each class name of each benchmark occurs as a noun (`head`: its last word).
-- Chart: table
-- Needs: nouns
SELECT benchmark, class, captions, head FROM class_coverage ORDER BY captions, benchmark, class
