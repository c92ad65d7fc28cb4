"""Export: networks in formats that can be used without bnprune."""
