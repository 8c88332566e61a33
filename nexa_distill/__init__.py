"""Distillation: a teacher's answers collected, filtered and made into a student's training data."""
