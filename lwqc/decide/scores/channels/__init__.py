"""Which channels of a group to remove first: one criterion per file."""
