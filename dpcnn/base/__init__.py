"""What everything rests on: files, values from outside, random numbers, memory, time."""
