"""Recovering accuracy after a cut, without training."""
