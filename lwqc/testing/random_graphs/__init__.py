"""Random graphs, as strategies for hypothesis."""
