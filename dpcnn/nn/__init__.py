"""Networks on NumPy: layers, losses, models. This package does not depend on ranks, files or flags."""
