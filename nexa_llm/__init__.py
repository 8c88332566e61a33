"""Asking a language model: safely, at a pace, within a budget, and never twice."""
