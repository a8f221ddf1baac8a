"""Named tensors of a model in a forward pass."""

from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import paddle
from paddle import nn

from ..._checks import hint
from ...errors import ConfigError, ModelError
from ...graph.calls import tensors_in


class NamedTensors:
    """Outputs and named tensors of a model.

    Args:
        model: a Layer, whose names are those of its sublayers, or a
            :class:`~paddleq.SavedModel`, whose names are those of the tensors of its program.
        names: the tensors to keep.
        whose: "teacher" or "student", for messages.

    Raises:
        ConfigError: the model has no tensor of a name; names the nearest.
    """

    def __init__(self, model: nn.Layer, names: Sequence[str], whose: str) -> None:
        self.model, self.whose = model, whose
        self.names = list(dict.fromkeys(names))
        self._saved = hasattr(model, "recording")
        known = (model.tensor_names if self._saved else
                 [name for name, _ in model.named_sublayers()])
        for name in self.names:
            if name not in known:
                kind = "tensor" if self._saved else "sublayer"
                raise ConfigError(f"node has {name!r}{hint(name, known)}, but the {whose} has no "
                                  f"{kind} of that name")

    def run(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> Dict[Any, Any]:
        """Run the model; return name -> tensor, and None -> list of its floating outputs."""
        with self._recording() as found:
            outputs = self.model(*args, **kwargs)
        missing = [name for name in self.names if name not in found]
        if missing:
            raise ModelError(f"node has {', '.join(map(repr, missing))}, which the {self.whose} "
                             "does not compute in this forward pass")
        result: Dict[Any, Any] = {name: self._checked(name, found[name]) for name in self.names}
        result[None] = [each for each in tensors_in(outputs) if paddle.is_floating_point(each)]
        return result

    def _checked(self, name, value):
        tensors = tensors_in(value)
        if len(tensors) != 1 or not paddle.is_floating_point(tensors[0]):
            raise ConfigError(f"node {name!r} of the {self.whose} must be one floating tensor, but "
                              f"is {len(tensors)} tensors" if len(tensors) != 1 else
                              f"node {name!r} of the {self.whose} must be a floating tensor, but "
                              f"is {tensors[0].dtype}")
        return tensors[0]

    @contextmanager
    def _recording(self) -> Iterator[Dict[str, Any]]:
        if self._saved:
            with self.model.recording(self.names) as found:
                yield found
            return
        layers, found = dict(self.model.named_sublayers()), {}

        def keep(name):
            def hook(_layer, _inputs, output) -> Any:  # None leaves the output as it is
                found[name] = output
            return hook

        with ExitStack() as stack:
            for name in self.names:
                handle = layers[name].register_forward_post_hook(keep(name))
                stack.callback(handle.remove)
            yield found


def pairs_of(found: Dict[Any, Any], names: List[str]) -> List[paddle.Tensor]:
    """Return the tensors of one loss from the result of :meth:`NamedTensors.run`."""
    return [found[name] for name in names] if names else found[None]


def logits_of(teacher: nn.Layer, student: nn.Layer) -> List[Tuple[str, str]]:
    """Return (name in the teacher, name in the student) of the inputs of the last softmaxes.

    Empty unless both are saved models each of whose outputs is one of a softmax.
    """
    found = [getattr(model, "logits_names", {}) for model in (teacher, student)]
    if not all(each and len(each) == len(model.output_names)
               for each, model in zip(found, (teacher, student))):
        return []
    return list(zip(*(each.values() for each in found)))
