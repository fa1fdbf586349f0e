"""Networks for and from other programs."""
