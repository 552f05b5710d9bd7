"""The committed tables, the public traces behind them, and the model."""
