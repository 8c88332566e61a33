"""Evaluating: scores, judgements, reports."""
