"""Networks on NumPy: layers, losses, models. Nothing here knows of ranks, files or flags."""
