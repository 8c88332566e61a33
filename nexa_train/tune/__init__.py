"""Hyperparameter search: each trial is a run, and what trial k tries depends on nothing but the study, k and earlier results."""
