"""Runs the whole test suite and says how long each part took."""
