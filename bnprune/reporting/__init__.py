"""What a run leaves behind, for people: one HTML page, and plots."""
