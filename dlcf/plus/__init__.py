"""plus."""
