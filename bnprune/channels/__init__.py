"""The channels of a network, and which of them must be removed together."""
