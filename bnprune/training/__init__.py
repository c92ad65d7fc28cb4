"""Training: the loop, the γ penalties and evaluation."""
