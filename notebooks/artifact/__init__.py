"""What the notebooks share, beside them and never installed: `data`, `measure`, `analysis`, `publish`."""
