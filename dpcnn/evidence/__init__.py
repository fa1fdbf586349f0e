"""Evidence for the claims: speed, bits, published accuracy."""
