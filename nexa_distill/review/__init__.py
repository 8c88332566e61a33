"""Reviewing pairs: a local page that shows a teacher's answers one by one and writes down what a person decides."""
