"""What networks cost on this machine: time, memory, size; two of them side by side."""
