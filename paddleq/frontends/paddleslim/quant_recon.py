"""``quant_recon_static``: quantization of saved models with learned rounding."""

import inspect
import logging
from typing import Any, Dict, List

from ..._checks import check_bool, check_choice, check_float, check_int, check_known_keys
from ...algorithms.reconstruction import BRECQ, AdaRound, QDrop
from ...errors import ConfigError
from .quant_post import quant_post_static
from .static_arguments import ORDER, paddleslim_positions

_logger = logging.getLogger("paddleq")
RECON_LEVELS = ("layer-wise", "region-wise")
_ADDED = ("regions", "region_weights_names", "epochs", "drop_prob", "lr", "limit")
_RECON_ORDER = (*ORDER[:ORDER.index("round_type")], "recon_level", "simulate_activation_quant",
                *ORDER[ORDER.index("hist_percent"):ORDER.index("deploy_backend")], *_ADDED)


@paddleslim_positions(_RECON_ORDER)
def quant_recon_static(model_dir: Any, quantize_model_path: Any, data_loader: Any = None,
                       recon_level: str = "layer-wise", simulate_activation_quant: bool = False,
                       regions: None = None, region_weights_names: None = None, epochs: int = 20,
                       drop_prob: float = 0.5, lr: float = 0.1, limit: int = 6,
                       **options: Any) -> List[str]:
    """Quantize a saved model with calibration data and learn the rounding of its weights.

    It is :func:`paddleq.quant_post_static` with the ``round_type`` of the first two columns:

    - "layer-wise", False: :class:`~paddleq.algorithms.AdaRound` on inputs of the float model
    - "layer-wise", True: :class:`~paddleq.algorithms.AdaRound` on inputs of the quantized model
    - "region-wise", False: :class:`~paddleq.algorithms.BRECQ`
    - "region-wise", True: :class:`~paddleq.algorithms.QDrop`

    Args:
        model_dir, quantize_model_path, data_loader: as for :func:`paddleq.quant_post_static`.
        recon_level: "layer-wise" (default) or "region-wise".
        simulate_activation_quant: quantize activations while the rounding is learned. Default
            False.
        regions, region_weights_names: must be None: the regions are found in the data flow.
        epochs: passes over the batches for each layer or region. Default 20.
        drop_prob: share of the elements of an activation that stay float, for "region-wise" with
            ``simulate_activation_quant``. Default 0.5.
        lr: learning rate. Default 0.1.
        limit: operators of a region; half of them, at least one, are the least number of its
            weighted layers, for "region-wise". Default 6.
        **options: other arguments of :func:`paddleq.quant_post_static` except ``round_type``.

    Returns:
        Names of the weights that are written as integers.

    Raises:
        ConfigError, ConfigTypeError: a wrong argument.
        FormatError, CalibrationError, NonFiniteError, ModelError: as
            :func:`paddleq.quant_post_static`.

    Examples:
        >>> import tempfile, paddle
        >>> from paddle.static import InputSpec
        >>> from paddleq.paddleslim.quant import quant_recon_static
        >>> folder = tempfile.mkdtemp()
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 4), paddle.nn.ReLU())
        >>> _ = net.eval()
        >>> paddle.jit.save(net, folder + "/float/net", [InputSpec([None, 8], "float32", "x")])
        >>> batches = [paddle.rand([16, 8]) for _ in range(4)]
        >>> names = quant_recon_static(folder + "/float", folder + "/int4", batches,
        ...                            recon_level="region-wise", weight_bits=4)
        >>> len(names)
        1
    """
    for name, value in (("regions", regions), ("region_weights_names", region_weights_names)):
        if value is not None:
            raise ConfigError(f"{name} must be None, because regions are found in the data flow; "
                              f"their size follows limit, but {name} is {value!r}")
    if "round_type" in options:
        raise ConfigError(f"round_type={options['round_type']!r} belongs to quant_post_static; "
                          "recon_level chooses the rounding here")
    check_known_keys("quant_recon_static", options,
                     {*_RECON_ORDER, *inspect.signature(quant_post_static).parameters}
                     - {"round_type", "unneeded"})
    settings = rounding_of(recon_level, simulate_activation_quant, epochs, drop_prob, lr, limit)
    return quant_post_static(model_dir, quantize_model_path, data_loader, round_type=settings,
                             **options)


def rounding_of(recon_level: str, simulate_activation_quant: bool, epochs: int = 20,
                drop_prob: float = 0.5, lr: float = 0.1, limit: int = 6) -> AdaRound:
    """Return the settings of a rounding for arguments of :func:`quant_recon_static`."""
    check_choice("recon_level", recon_level, RECON_LEVELS)
    simulated = check_bool("simulate_activation_quant", simulate_activation_quant)
    check_float("drop_prob", drop_prob, 0.0, 1.0)
    passes: Dict[str, Any] = {
        "epochs": check_int("epochs", epochs, 1),
        "learning_rate": check_float("lr", lr, 0.0, float("inf"), open_low=True, open_high=True)}
    blocks: Dict[str, Any] = {"least_layers": max(1, check_int("limit", limit, 1) // 2)}
    dropped = simulated and recon_level == "region-wise"
    if limit != 6 and recon_level == "layer-wise":
        _logger.warning("limit=%s has no effect: it is for recon_level='region-wise'", limit)
    if drop_prob != 0.5 and not dropped:
        _logger.warning("drop_prob=%s has no effect: it is for recon_level='region-wise' with "
                        "simulate_activation_quant=True", drop_prob)
    if recon_level == "layer-wise":
        return AdaRound(**passes, asymmetric=simulated)
    if dropped:
        return QDrop(**passes, **blocks, drop_probability=drop_prob)
    return BRECQ(**passes, **blocks)
