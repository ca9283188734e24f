"""Suites, metrics, the harness and the leaderboard."""
