"""The basis of all packages: files, values from outside, random numbers, memory, time."""
