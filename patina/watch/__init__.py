"""What can be seen of a run while it trains: the terminal, curves and previews."""
