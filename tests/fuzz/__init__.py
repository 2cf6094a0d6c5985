"""Mutated models against every command: `python -m tests.fuzz --minutes 60`."""
