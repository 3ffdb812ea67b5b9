"""Measures of trained networks: equivariance, accuracy, reconstruction."""
