"""The basis of all rooms: files, values from outside, random numbers, memory, time."""
