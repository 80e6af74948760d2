"""Decisions about attempts and terminal jobs, one module each. They return values only."""
