"""Models from other frameworks, through the official converters."""
