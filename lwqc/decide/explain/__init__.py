"""What a model is made of, for its reader."""
