"""Measures of an answer against its reference; each is one pure function."""
