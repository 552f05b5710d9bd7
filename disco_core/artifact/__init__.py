"""What the notebooks share: public traces, claims and their verdicts, figures with their provenance."""
