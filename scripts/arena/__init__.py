"""The parts of `scripts/arena.py`: arms, cells, their execution, and the table that is made from them."""
