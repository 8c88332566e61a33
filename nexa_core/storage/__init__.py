"""Files in folders and in buckets, and how one is made like the other."""
