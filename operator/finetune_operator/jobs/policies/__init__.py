"""Decisions about attempts and ended jobs, one module each. They return values only."""
