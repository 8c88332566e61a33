"""The overview of a dataset: one HTML page of what is in it, which needs no server, no script and no network."""
