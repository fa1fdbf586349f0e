"""Training from Python: models with the interface of scikit-learn, on all ranks of the job."""
