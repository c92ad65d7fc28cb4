"""Penalties on BatchNorm scale factors."""
