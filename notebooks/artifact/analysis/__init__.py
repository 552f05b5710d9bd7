"""What notebooks compute from tables and measurements."""
