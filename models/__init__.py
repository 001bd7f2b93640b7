"""What a model is, and the file it travels in."""
