"""A reader's own server and device: their records, and what a plan would change for them."""
