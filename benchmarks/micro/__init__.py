"""The zoo on the micro world: settings tuned with equal trials, ablations."""
