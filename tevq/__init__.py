"""Translation-equivariant image quantization, reproduced (Shin et al., ICASSP 2023)."""

__version__ = "0.1.0"
