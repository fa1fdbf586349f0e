"""Data sets: their sources, their folders of HDF5 shards, and the way into memory."""
