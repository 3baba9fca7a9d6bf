"""Drills: faults on purpose, load from outside, and numbers that say what callers noticed."""
