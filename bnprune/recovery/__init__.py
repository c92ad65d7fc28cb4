"""What brings accuracy back after a cut, without training."""
