"""The training of a network: its start, its loop, its end."""
