"""Notebooks run, exhibits and verdicts written, and shown."""
