"""Looking at prepared data, from notebooks and scripts."""
