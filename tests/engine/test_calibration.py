"""Calibration restores the state of a quantized model, also after an error."""

import paddle
import pytest
from paddle import nn

import paddleq
from paddleq import PTQ, QAT, State, disable_fake_quant, disable_observer, set_fake_quantize
from paddleq.engine import fake_quantizers
from paddleq.errors import CalibrationError, NonFiniteError
from paddleq.graph.calls import capture_inputs
from paddleq.nn import KVCache


def qat_training(model):
    return QAT().quantize(model)


def qat_evaluation(model):
    model = QAT().quantize(model)
    model.eval()
    return model


def qat_without_fake_quant(model):
    return QAT().quantize(model).apply(disable_fake_quant)


def qat_with_frozen_observers(model):
    model = QAT().quantize(model)
    model(data()[0])
    return model.apply(disable_observer)


def validation(model):
    model = QAT().quantize(model)
    model.eval()
    set_fake_quantize(model, State.VALIDATION)
    return model


def ptq_calibration(model):
    return PTQ().quantize(model)


def ptq_calibrated(model):
    model = PTQ().quantize(model)
    paddleq.calibrate(model, data())
    return model


def one_layer_in_training_mode(model):
    model = PTQ().quantize(model)
    model[1].train()
    return model


STATES = [qat_training, qat_evaluation, qat_without_fake_quant, qat_with_frozen_observers,
          validation, ptq_calibration, ptq_calibrated, one_layer_in_training_mode]


def data():
    paddle.seed(3)
    return [paddle.randn([8, 4]) for _ in range(3)]


def net():
    paddle.seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))


def state_of(model):
    modes = {name: layer.training for name, layer in model.named_sublayers(include_self=True)}
    return modes, {name: (q.state, q.observer_enabled, q.fake_quant_enabled)
                   for name, q in fake_quantizers(model)}


def scales(model):
    return {name: q.scale.tolist() for name, q in fake_quantizers(model)
            if not q.observer.dynamic}


@pytest.mark.parametrize("prepare", STATES, ids=lambda prepare: prepare.__name__)
def test_calibrate_restores_the_state(prepare):
    model = prepare(net())
    modes, states = state_of(model)
    assert paddleq.calibrate(model, data()) == 3
    # Quantizers that were calibrating are complete; all others are unchanged.
    expected = {name: (State.VALIDATION, False, True) if state[0] is State.CALIBRATION else state
                for name, state in states.items()}
    assert state_of(model) == (modes, expected)


@pytest.mark.parametrize("prepare, error", [
    (prepare, error) for prepare in STATES for error in ("loader", "model", "non-finite", "no data")
    if (prepare, error) != (qat_with_frozen_observers, "non-finite")])  # disabled observers
def test_an_error_restores_the_state(prepare, error):
    model = prepare(net())
    before = state_of(model)

    def batches():
        yield data()[0]
        if error == "loader":
            raise OSError("disk")
        yield {"model": paddle.zeros([8, 5]),
               "non-finite": paddle.full([8, 4], float("nan"))}[error]

    expected = {"loader": OSError, "non-finite": NonFiniteError,
                "no data": paddleq.errors.CalibrationError}.get(error, Exception)
    with pytest.raises(expected):
        paddleq.calibrate(model, [] if error == "no data" else batches())
    assert state_of(model) == before


def test_scales_are_updated_by_training_after_calibration():
    model = qat_training(net())
    paddleq.calibrate(model, data())
    before = scales(model)
    model(10.0 * data()[0])
    after = scales(model)
    assert before and all(after[name] != before[name] for name in before)


def test_calibration_keeps_the_scales_of_disabled_observers():
    model = qat_with_frozen_observers(net())
    before = scales(model)
    paddleq.calibrate(model, [10.0 * batch for batch in data()])
    assert scales(model) == before


def test_convert_without_data_keeps_the_states():
    """Training goes on to update the scales after the error."""
    model = QAT().quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    before = [q.state for _, q in fake_quantizers(model)]
    with pytest.raises(CalibrationError, match="no calibration data"):
        paddleq.convert(model)
    assert [q.state for _, q in fake_quantizers(model)] == before
    model.train()
    model[0](paddle.rand([2, 4]))
    first = model[0].activation_quantizer.scale.item()
    model[0](100.0 * paddle.ones([2, 4]))
    assert model[0].activation_quantizer.scale.item() > first


@pytest.mark.parametrize("call", [
    lambda cache, k, v: cache(k, v),
    lambda cache, k, v: cache(k, v=v),
    lambda cache, k, v: cache(v=v, k=k),
    lambda cache, k, v: cache(past=None, v=v, k=k),
])
def test_keyword_inputs_are_captured_in_the_order_of_the_parameters(call):
    cache, seen = KVCache(), []
    k, v = paddle.rand([1, 2, 3, 4]), paddle.rand([1, 2, 3, 4])
    with capture_inputs({"cache": cache}, lambda name, *inputs: seen.append(inputs), 2):
        call(cache, k, v)
    ((first, second),) = seen
    assert first is k and second is v


def test_streams_without_a_length():
    """A DataLoader of an IterableDataset has ``__len__``, which raises ValueError."""
    class Stream(paddle.io.IterableDataset):
        def __iter__(self):
            return iter(paddle.rand([8, 3]).numpy())

    model = PTQ("AbsmaxQuantizer").quantize(nn.Sequential(nn.Linear(3, 2)))
    loader = paddle.io.DataLoader(Stream(), batch_size=2)
    assert paddleq.calibrate(model, loader) == 4
    assert paddleq.calibrate(model, loader, num_batches=3) == 3
