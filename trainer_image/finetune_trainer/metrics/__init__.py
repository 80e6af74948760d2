"""Metrics of an answer against its reference, each one pure function, and their intervals."""
