"""The networks: quantizer, VQGAN, classifier, transformer, and sampling from it."""

# they add themselves to transformer.ARCHITECTURES, to QUANTIZERS and to DOWNSAMPLERS
from tevq.models import official, rivals  # noqa: F401
