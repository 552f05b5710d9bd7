"""DiSCo's neighbours: other systems of two ends, made of the same modules."""
