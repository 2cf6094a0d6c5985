"""Real models trained on data that needs no download; see README.md."""
