"""Targets: how a plan becomes a graph that one runtime executes well."""
