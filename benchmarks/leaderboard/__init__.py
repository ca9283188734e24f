"""The leaderboard: rows of ``results.jsonl`` as a page, and the checks that a submission has to pass."""
