"""ModelEndpoint: rolls revisions out behind a stable address. observe → plan, both pure."""
