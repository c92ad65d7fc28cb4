"""Tasks: the loss that a network is trained with, and the values it is judged by."""
