"""A small trained model with real data, for `lwqc demo`."""
