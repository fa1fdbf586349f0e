"""What shows that a claim holds: speed, bits, published accuracy."""
