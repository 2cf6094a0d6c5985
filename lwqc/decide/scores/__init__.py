"""Importance and sensitivity scores; one criterion per file."""
