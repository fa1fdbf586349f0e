"""Data sets: their sources, their folders of HDF5 shards, and their samples in memory."""
