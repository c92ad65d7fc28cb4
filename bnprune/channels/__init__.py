"""Which channels a network has, and which must go together."""
