"""The ladder: what each step from the naive deployment to this one gains, measured in one run on one machine."""
