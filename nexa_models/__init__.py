"""Models: building, encoding rows for them, saving, loading, predicting."""
