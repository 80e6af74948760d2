"""Breaks the operator on purpose, in ways a person could, and counts which of them tests notice."""
