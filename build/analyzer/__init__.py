"""Model Analyzer on the ensemble: configurations, runs, what they found, and the choice that goes back into the spec."""
