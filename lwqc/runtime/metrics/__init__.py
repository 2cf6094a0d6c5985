"""Metrics that are named rather than written, one file each."""
