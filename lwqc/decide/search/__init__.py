"""The search over whole plans: widths, branches and formats at once."""
