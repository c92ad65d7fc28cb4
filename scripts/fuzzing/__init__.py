"""The cases of `scripts/fuzz.py`, and the process they run in."""
