"""The networks: quantizer, VQGAN, classifier, transformer, and sampling from it."""

from tevq.models import official, rivals  # noqa: F401  (add themselves to ARCHITECTURES etc.)
