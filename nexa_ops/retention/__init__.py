"""What may be deleted, what may not, and deleting it."""
