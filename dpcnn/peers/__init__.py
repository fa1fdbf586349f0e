"""Other trainers, for comparison."""
