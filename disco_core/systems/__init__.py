"""The two neighbours of DiSCo, built from the rooms above."""
