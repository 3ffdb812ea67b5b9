"""The networks: quantizer, VQGAN, classifier, transformer, and sampling from it."""

from tevq.models import official  # noqa: F401  (adds itself to transformer.ARCHITECTURES)
