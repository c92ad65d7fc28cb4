"""How results and progress look: text tables, JSON and progress bars."""
