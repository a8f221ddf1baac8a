"""``paddleslim.auto_compression``: compression of saved models by a configuration."""

from ..frontends.paddleslim.auto_compression import AutoCompression

__all__ = ["AutoCompression"]
