"""The zoo on the micro world: settings tuned with equal trials, a table over seeds, ablations."""
