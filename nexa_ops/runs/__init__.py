"""An operator's view of the runs: which there are, how each goes, and what can be done with it."""
