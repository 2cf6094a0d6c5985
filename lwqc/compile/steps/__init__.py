"""The steps of a plan that change a model."""
