"""Runs on disk: directories, checkpoints, metrics, and the stages of a recipe."""
