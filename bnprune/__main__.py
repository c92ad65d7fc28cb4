"""`python -m bnprune`, which `torchrun -m bnprune` needs too."""

from bnprune.cli import main

if __name__ == "__main__":
    main()
