"""Measurements of this machine: taken, stored, read."""
