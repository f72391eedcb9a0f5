"""`starter.py doctor`: checks of the parts and of Temporal, and how findings are shown."""
