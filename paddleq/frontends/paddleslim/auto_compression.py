"""``AutoCompression``: PaddleSlim's auto compression (ACT) of a saved model."""

import inspect
import logging
import os
from typing import Any, Callable, Iterable, List, Optional, Union

import yaml

from ..._checks import wrong_type
from ...algorithms.distillation import DistillResult
from ...errors import ConfigError
from ...saved_model import SavedModel
from ...saved_model.files import find_files
from .act_config import AutoCompressionConfig
from .distill import QuantAware, distill
from .quant_post import quant_post_static
from .quant_recon import quant_recon_static

_logger = logging.getLogger("paddleq")
Path = Union[str, "os.PathLike[str]"]


class AutoCompression:
    """Quantize a saved model as a configuration of PaddleSlim's auto compression (ACT) says.

    ``QuantAware`` (with ``Distillation`` and ``TrainConfig``) trains with :func:`paddleq.distill`;
    ``QuantPost`` quantizes with :func:`paddleq.quant_post_static`, or with
    :func:`paddleq.paddleslim.quant.quant_recon_static` if it has ``recon_level``. Pruning, several
    teachers and the search of hyperparameters are errors.

    Args:
        model_dir: folder of the saved model.
        train_dataloader: batches without labels, as for :func:`paddleq.calibrate`, which can be
            iterated repeatedly; or a function that returns an iterator.
        model_filename, params_filename: names of the files in ``model_dir``, as for
            :func:`paddleq.quant_post_static`.
        save_dir: folder to write to. Default "./output".
        config: dict with the sections of ACT, or the path of a YAML file. PaddleSlim chooses a
            strategy for None; here it is an error.
        input_shapes, target_speedup: must be None: the sizes stay open, and paddleq does not search
            a strategy.
        eval_callback: function of the quantized Layer to a number, higher is better; see
            :func:`paddleq.distill`. PaddleSlim's takes an executor and a program.
        eval_dataloader: in place of ``eval_callback``, batches whose mean loss is to become small.
            Both are for ``QuantAware``.
        deploy_hardware: has no effect.

    Raises:
        ConfigError, ConfigTypeError: a wrong argument, or a section or key that is not supported;
            names the replacement.
        FormatError: the saved model is missing or damaged.

    Examples:
        >>> import os, tempfile, paddle
        >>> from paddle.static import InputSpec
        >>> from paddleq.paddleslim import AutoCompression
        >>> folder = tempfile.mkdtemp()
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(8, 4), paddle.nn.Softmax())
        >>> _ = net.eval()
        >>> paddle.jit.save(net, folder + "/float/net", [InputSpec([None, 8], "float32", "x")])
        >>> batches = [paddle.rand([16, 8]) for _ in range(4)]
        >>> config = {"Distillation": {}, "QuantAware": {"weight_bits": 4},
        ...           "TrainConfig": {"epochs": 2, "learning_rate": 1e-3}}
        >>> compression = AutoCompression(folder + "/float", batches, save_dir=folder + "/int4",
        ...                               config=config)
        >>> compression.compress().steps, sorted(os.listdir(folder + "/int4"))
        (8, ['model.paddleq.yaml', 'model.pdiparams', 'model.pdmodel'])
    """

    def __init__(self, model_dir: Path, train_dataloader: Iterable,
                 model_filename: Optional[str] = None, params_filename: Optional[str] = None,
                 save_dir: Path = "./output", config: Any = None, input_shapes: None = None,
                 target_speedup: None = None, eval_callback: Optional[Callable] = None,
                 eval_dataloader: Optional[Iterable] = None, deploy_hardware: str = "gpu") -> None:
        for name, value in (("model_dir", model_dir), ("save_dir", save_dir)):
            if not isinstance(value, (str, os.PathLike)):
                raise wrong_type(name, value, "a folder")
        for name, value in (("input_shapes", input_shapes), ("target_speedup", target_speedup)):
            if value is not None:
                raise ConfigError(f"{name} must be None, got {value!r}: sizes stay open, and the "
                                  "strategy is the one of config")
        if config is None:
            raise ConfigError("config must be a dict or a YAML file with QuantAware or QuantPost: "
                              "paddleq does not choose a strategy")
        folder = "."
        if isinstance(config, (str, os.PathLike)):
            folder, config = os.path.dirname(os.fspath(config)) or ".", _read(os.fspath(config))
        self._model = find_files(os.fspath(model_dir), model_filename, params_filename)
        self._config = AutoCompressionConfig.parse(config, folder, post=True)
        if self._config.model not in (None, self._model):
            raise ConfigError(f"Global names the model {self._config.model[0]}, but model_dir is "
                              f"{os.fspath(model_dir)}")
        _check_callback(eval_callback)
        self._data, self._folder = train_dataloader, os.fspath(save_dir)
        self._evaluation = {"eval_callback": eval_callback, "eval_data": eval_dataloader}
        self._quantization = None
        if self._config.post is None:
            self._quantization = QuantAware(self._config.quantization)
        else:
            for name, value in (("eval_callback", eval_callback),
                                ("eval_dataloader", eval_dataloader)):
                if value is not None:
                    _logger.warning("%s has no effect: QuantPost quantizes without training", name)

    def compress(self) -> Union[DistillResult, List[str]]:
        """Quantize the model and write it to ``save_dir`` as ``model.pdmodel``.

        An existing file is replaced. Without ``model_filename``, the name is that of PaddleSlim's
        default.

        Returns:
            The :class:`~paddleq.algorithms.distillation.DistillResult` of ``QuantAware``; the names
            of the weights that are written as integers of ``QuantPost``. PaddleSlim's returns None.

        Raises:
            PaddleqError: as :func:`paddleq.distill` and :func:`paddleq.quant_post_static`.
        """
        config = self._config
        if self._quantization is None:
            post = config.post or {}
            quantize = quant_recon_static if "recon_level" in post else quant_post_static
            (folder, name), parameters = os.path.split(self._model[0]), self._model[1]
            if parameters is not None and os.path.isfile(parameters):
                parameters = os.path.basename(parameters)
            else:  # a file for each parameter, or none
                parameters = None
            return quantize(folder, self._folder, self._loader(), model_filename=name,
                            params_filename=parameters, **post)
        teacher = None if config.teacher is None else SavedModel(*config.teacher)
        result = distill(SavedModel(*self._model), self._data, config.quantization, config.losses,
                         teacher=teacher, **self._evaluation, **config.train)
        self._quantization.qat.save_quantized_model(
            result.model, os.path.join(self._folder, "model"),
            onnx_format=self._quantization.onnx_format)
        return result

    def _loader(self):
        return self._data() if callable(self._data) else self._data


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"config: cannot read {path}: {error}") from error


def _check_callback(callback):
    if callback is None:
        return
    if not callable(callback):
        raise wrong_type("eval_callback", callback, "a function of the model")
    try:
        parameters = inspect.signature(callback).parameters.values()
    except ValueError:  # a function without a signature, of C
        return
    required = [each for each in parameters
                if each.default is each.empty
                and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if len(required) > 1:
        raise ConfigError(
            "eval_callback must be a function of the model, a Layer, but takes "
            f"{', '.join(each.name for each in required)}: PaddleSlim's executor and program do "
            "not exist here")
