"""Benchmarks: latency and memory of one network, or of two side by side."""
