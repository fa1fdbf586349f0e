"""The job around a run: its end, its hangs, its fitness, its batch scripts."""
