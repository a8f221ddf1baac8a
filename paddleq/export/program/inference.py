"""Computation of a program as it stands, by Paddle Inference without optimization."""

import os
from typing import Any, Dict, List

import numpy as np

from ..._atomic_write import temporary_folder
from .op_desc import attribute, inputs, make_op, outputs, replace_ops


def load_as_it_stands(program: Any) -> Any:
    """Return a predictor of Paddle Inference that runs the operators one by one."""
    from paddle import inference

    with temporary_folder() as folder:
        paths = [os.path.join(folder, name) for name in ("m.pdmodel", "m.pdiparams")]
        program.save(*paths, workarounds=False)
        config = inference.Config(*paths)
        config.disable_gpu()
        config.disable_glog_info()
        config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(1)
        config.switch_ir_optim(False)
        return inference.create_predictor(config)


def run_predictor(predictor: Any, arrays: Dict[str, np.ndarray]) -> List[np.ndarray]:
    """Return the outputs of a predictor of Paddle Inference for arrays by name."""
    for name, array in arrays.items():
        handle = predictor.get_input_handle(name)
        handle.reshape(list(array.shape))
        handle.copy_from_cpu(np.ascontiguousarray(array))
    predictor.run()
    return [predictor.get_output_handle(name).copy_to_cpu()
            for name in predictor.get_output_names()]


def feed_names(program: Any) -> List[str]:
    """Return the names of the inputs of a program."""
    return [name for op in _by_column(program, "feed") for name in outputs(op, "Out")]


def fetch_names(program: Any) -> List[str]:
    """Return the names of the outputs of a program."""
    return [name for op in _by_column(program, "fetch") for name in inputs(op, "X")]


def _by_column(program, kind):
    # Paddle 2.6 writes the feeds in reverse order.
    return sorted((op for op in program.desc.blocks[0].ops if op.type == kind),
                  key=lambda op: attribute(op, "col", 0))


def set_feeds_and_fetches(program: Any, ops: List[Any], feeds: List[str],
                          fetches: List[str]) -> None:
    """Replace the operators of the main block by ``ops`` between feeds and fetches."""
    replace_ops(program.desc.blocks[0], [
        *(make_op("feed", {"X": "feed"}, {"Out": name}, col=i) for i, name in enumerate(feeds)),
        *ops,
        *(make_op("fetch", {"X": name}, {"Out": "fetch"}, col=i)
          for i, name in enumerate(fetches))])
