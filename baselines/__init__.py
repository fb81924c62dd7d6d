"""Other ways to choose hyperparameters, to compare with: one file for each, run as `python -m baselines.<name>`."""
