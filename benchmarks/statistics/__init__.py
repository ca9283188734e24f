"""What the scores of several seeds say: aggregates, intervals, tests, profiles and the cost to reach a target."""
