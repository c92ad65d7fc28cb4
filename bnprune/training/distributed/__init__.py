"""Distributed training: several processes, started by torchrun."""
