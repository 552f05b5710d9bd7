"""Related systems of two endpoints, built from the same modules."""
