"""What users of other tools write for three tasks, and what comes of it; see `measure`."""
