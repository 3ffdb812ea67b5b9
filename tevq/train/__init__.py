"""Training of the classifier and of both stages."""
