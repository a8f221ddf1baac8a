"""Checks of arguments: accepted and refused values of each kind.

The tests of the front ends have one wrong value for each argument, which shows its check.
"""

import numpy as np
import pytest

from paddleq import _checks
from paddleq.errors import ConfigError, ConfigTypeError

KINDS = {
    "int": (lambda value: _checks.check_int("x", value, 1, 16),
            [1, 16], [0, 17, -1], [1.0, "1", True, None, [1], np.int64(8)]),
    "int without upper bound": (lambda value: _checks.check_int("x", value, 0),
                                [0, 2**40], [-1], [0.0, False]),
    "float": (lambda value: _checks.check_float("x", value, 0, 1),
              [0, 1, 0.5], [-0.1, 1.1, float("nan"), float("inf")], ["0.5", True, None, [0.5]]),
    "float in an open interval": (
        lambda value: _checks.check_float("x", value, 0, 1, open_low=True, open_high=True),
        [0.5, 1e-9], [0, 1, 0.0, 1.0], [False]),
    "bool": (lambda value: _checks.check_bool("x", value),
             [True, False], [], [1, 0, "True", None, [True], np.bool_(True)]),
    "choice": (lambda value: _checks.check_choice("x", value, ("alpha", None)),
               ["alpha", None], ["alhpa", 3, [], np.zeros(2)], []),
}
ROWS = [(kind, value, error) for kind, (_, valid, outside, other) in KINDS.items()
        for values, error in ((valid, None), (outside, ConfigError), (other, ConfigTypeError))
        for value in values]


@pytest.mark.parametrize("kind, value, error", ROWS, ids=str)
def test_kinds_of_checks(kind, value, error):
    check = KINDS[kind][0]
    if error is None:
        assert check(value) == value
        return
    with pytest.raises(error, match="^x must be .*but is") as caught:
        check(value)
    assert type(caught.value) is error


def test_messages_name_the_argument_the_value_and_the_accepted_values():
    for call, words in (
            (lambda: _checks.check_int("bits", 17, 1, 16), ["bits", "17", "[1, 16]"]),
            (lambda: _checks.check_float("rate", 1.0, 0, 1, open_high=True),
             ["rate", "1.0", "[0, 1)"]),
            (lambda: _checks.check_choice("algo", "KLL", ["KL", "hist"]),
             ["algo", "'KLL'", "'KL', 'hist'", "did you mean 'KL'"]),
            (lambda: _checks.check_known_keys("config", {"bit": 8}, ["bits"]),
             ["config", "'bit'", "did you mean 'bits'", "valid: bits"])):
        with pytest.raises(ConfigError) as caught:
            call()
        assert [word for word in words if word not in str(caught.value)] == []


def test_long_values_are_shortened_in_messages():
    with pytest.raises(ConfigTypeError) as caught:
        _checks.check_int("bits", "8" * 1000)
    assert len(str(caught.value)) < 250
