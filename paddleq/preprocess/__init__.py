"""What happens to a tensor before it is quantized."""

from .pact import PACT

__all__ = ["PACT"]
