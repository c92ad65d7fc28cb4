"""Rendering of results and progress: text tables, JSON and progress bars."""
