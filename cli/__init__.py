"""The command line: `starter.py` is its door."""
