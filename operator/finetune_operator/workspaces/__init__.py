"""The workspace of a namespace: when a janitor removes files that are no longer needed."""
