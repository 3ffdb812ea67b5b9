"""The networks: quantizer, VQGAN, classifier, transformer, and sampling from it."""
