"""ONNX forms of special functions, by approximations that are exact to the digits of float32.

The coefficients are of polynomials that interpolate the functions at Chebyshev nodes.
"""

import math
from typing import Sequence, cast

import numpy as np

from .exact_functions import function
from .splice import OnnxBuilder

# erfinv(x) / x as a function of w - 2.5 for w <= 5, of sqrt(w) - 3 beyond, with w = -log(1 - x**2).
_ERFINV = (
    -8.73983104e-09, 2.32858446e-08, 4.65428731e-07, -3.46335617e-06, -4.9597435e-06,
    0.000218346915, -0.00125274842, -0.00417738976, 0.246640289, 1.50140936)
_ERFINV_TAIL = (
    9.38914472e-05, -0.000282563883, -2.98696069e-05, 0.00145070099, -0.00360916651,
    0.00570074289, -0.00763508449, 0.00944353453, 1.00167483, 2.83297683)
# lgamma(x) / ((x - 1) * (x - 2)) as a function of x - 2, for x from 1 to 3.
_LGAMMA = (
    -3.87341843e-05, 7.81756156e-05, -5.24195053e-05, 0.00013063247, -0.000425571313,
    0.0009442966, -0.0021020616, 0.00499156092, -0.0123849751, 0.0329656257, -0.100317273,
    0.422784326)
_STIRLING = (-1 / 1680, 1 / 1260, -1 / 360, 1 / 12)  # of 1 / x**2, for x from 3 on
_DIGAMMA = (-1 / 252, 1 / 120, -1 / 12)  # of 1 / x**2, for x from 6 on


def _polynomial(to: OnnxBuilder, coefficients: Sequence[float], x: str) -> str:
    """Return the value at ``x`` of a polynomial, whose highest coefficient is the first."""
    found = None
    for each in coefficients:
        found = np.float32(each) if found is None else to.node(
            "Add", to.node("Mul", found, x), np.float32(each))
    return cast(str, found)  # there are two coefficients or more


def _binary(to: OnnxBuilder, kind: str, a, b) -> str:
    """Add an operator of two inputs; numbers become constants of float32."""
    return to.node(kind, *(each if isinstance(each, str) else np.float32(each)
                           for each in (a, b)))


@function("erfinv")
def erfinv(to, x, operator):
    rest = _binary(to, "Mul", _binary(to, "Sub", 1, x), _binary(to, "Add", x, 1))
    w = to.node("Neg", to.node("Log", rest))
    middle = _polynomial(to, _ERFINV, _binary(to, "Sub", w, 2.5))
    tail = _polynomial(to, _ERFINV_TAIL, _binary(to, "Sub", to.node("Sqrt", w), 3))
    factor = to.node("Where", _binary(to, "LessOrEqual", w, 5), middle, tail)
    ends = _binary(to, "GreaterOrEqual", to.node("Abs", x), 1)  # infinite beyond, as in Paddle
    return _binary(to, "Mul", to.node("Where", ends, np.float32(np.inf), factor), x)


@function("lgamma", "gammaln")
def lgamma(to, x, operator):
    """Logarithm of the absolute value of the gamma function."""
    size = to.node("Abs", x)
    small = _binary(to, "Less", size, 1)
    log = to.node("Log", size)
    # lgamma(x) = lgamma(x + 1) - log(x) below 1. Both differences from a root are exact.
    above = to.node("Where", small, _binary(to, "Sub", size, 1), _binary(to, "Sub", size, 2))
    roots = _binary(to, "Mul", above, _binary(to, "Add", above, 1))
    middle = _binary(to, "Mul", _polynomial(to, _LGAMMA, above), roots)
    middle = _binary(to, "Sub", middle, to.node("Where", small, log, np.float32(0)))
    inverse = _binary(to, "Div", 1, size)
    series = _binary(to, "Mul", _polynomial(
        to, _STIRLING, _binary(to, "Mul", inverse, inverse)), inverse)
    large = _binary(to, "Mul", _binary(to, "Sub", size, 0.5), _binary(to, "Sub", log, 1))
    large = _binary(to, "Add", large, _binary(to, "Add", series, (math.log(2 * math.pi) - 1) / 2))
    positive = to.node("Where", _binary(to, "Less", size, 3), middle, large)
    sine, _ = _circle(to, size)
    product = to.node("Abs", _binary(to, "Mul", sine, size))
    reflected = _binary(to, "Sub", _binary(
        to, "Sub", math.log(math.pi), to.node("Log", product)), positive)
    return to.node("Where", _binary(to, "Less", x, 0), reflected, positive)


@function("digamma")
def digamma(to, x, operator):
    """Derivative of lgamma: a series at ``x + 6``, and six steps back."""
    size = to.node("Abs", x)
    near = _binary(to, "Min", size, 1e18)  # its square is finite
    pair = _binary(to, "Mul", near, _binary(to, "Add", near, 5))  # 1/x + 1/(x+5), and so on
    shares = [_binary(to, "Div", _binary(to, "Add", _binary(to, "Add", near, near), 5),
                      _binary(to, "Add", pair, number)) for number in (0, 4, 6)]
    steps = to.node("Sum", *shares)
    far = _binary(to, "Add", size, 6)
    inverse = _binary(to, "Div", 1, far)
    square = _binary(to, "Mul", inverse, inverse)
    series = _binary(to, "Mul", _polynomial(to, _DIGAMMA, square), square)
    half = _binary(to, "Mul", inverse, 0.5)
    positive = to.node("Sub", _binary(to, "Sub", to.node("Log", far), half), steps)
    positive = _binary(to, "Add", positive, series)
    sine, cosine = _circle(to, size)
    # NaN at poles, as in Paddle, not infinite.
    pole = to.node("Where", _binary(to, "Equal", sine, 0), np.float32(np.nan), sine)
    cotangent = _binary(to, "Mul", _binary(to, "Div", cosine, pole), math.pi)
    reflected = to.node("Sum", positive, _binary(to, "Div", 1, size), cotangent)
    return to.node("Where", _binary(to, "Less", x, 0), reflected, positive)


def _circle(to, x):
    """Return sine and cosine of ``pi * x`` for ``x`` of any size, up to a common sign."""
    angle = _binary(to, "Mul", _binary(to, "Sub", x, to.node("Round", x)), math.pi)
    return to.node("Sin", angle), to.node("Cos", angle)
