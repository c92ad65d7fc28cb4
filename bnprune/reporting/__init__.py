"""The report of a run: an HTML page, pictures, and charts for the terminal."""
