"""Structured reasons for which a layer stays float."""

import enum
from dataclasses import dataclass


class SkipKind(enum.Enum):
    """Kinds of reasons for which a layer stays float. The value is the sentence for display.

    Examples:
        >>> from paddleq.config import SkipKind
        >>> SkipKind.NO_RULE.value
        'no rule matches'
    """

    SKIP_ATTRIBUTE = "skip_quant is set"
    NO_RULE = "no rule matches"
    EXCLUDED = "excluded by {detail}"
    NOT_CONFIGURED = "{detail} is None"
    OUTSIDE_DECODER_LAYERS = "outside of the decoder layers"
    NOT_REGISTERED = "its class is not registered; see paddleq.register_layer"
    OVERRIDES_FORWARD = ("its class overrides forward, so its weights are not known to be used as "
                         "usual; see paddleq.register_layer")
    NOT_LINEAR = "only Linear is quantized"
    WEIGHT_FROM_HOOK = ("its weight is computed by a hook (weight_norm, spectral_norm); remove "
                        "that first")
    KEPT_FLOAT = "{detail}"


@dataclass(frozen=True)
class SkipReason:
    """Reason for which a layer stays float.

    Args:
        kind: a :class:`SkipKind`.
        detail: the entry of a rule or the argument that decided; "" where there is none.

    Examples:
        >>> from paddleq.config import SkipKind, SkipReason
        >>> print(SkipReason(SkipKind.EXCLUDED, "name 'head'"))
        excluded by name 'head'
    """

    kind: SkipKind
    detail: str = ""

    def __str__(self) -> str:
        return self.kind.value.format(detail=self.detail)
