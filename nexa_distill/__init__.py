"""Distillation from a teacher; not in this version, its commands say so."""
