"""Analyses of the graph; none of them changes it."""
