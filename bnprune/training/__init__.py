"""Training: the loop, the γ penalties, evaluation and recalibration."""
