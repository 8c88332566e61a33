"""What a run would be, worked out before it begins."""
