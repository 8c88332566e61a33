"""Doors only: each command loads a config, calls one function and prints what came out."""
