"""Pointwise arithmetic of two-label mean field, on vectors that the compiler keeps in registers.

Logarithm, exponential and hyperbolic tangent are polynomials, because calls into the C
library cannot be vectorised. Errors are below 1e-6 in the marginal, a hundredth of what
any filter of the CRF leaves.
"""

import numpy as np
from llvmlite import ir
from numba import types

from medclipsam.engine.jit import intrinsic, kernel

ONE, HALF = np.float32(1), np.float32(0.5)
SQRT_HALF, LN_2 = np.float32(0.5**0.5), np.float32(0.6931471805599453)
MANTISSA, EXPONENT_OF_HALF = np.int32(0x007FFFFF), np.int32(0x3F000000)
EXPONENT_SHIFT, EXPONENT_BIAS = np.int32(23), np.int32(126)
# log(1 + x) − x + x²/2 over x³ on [√½ − 1, √2 − 1]: logf of the Cephes library (S. L. Moshier)
LOG_TERMS = tuple(
    np.float32(term)
    for term in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
ROOT_E = np.float32(np.exp(-0.5))
COSH_TERMS = tuple(np.float32(1 / term) for term in (720, 24, 2, 1))
SINH_TERMS = tuple(np.float32(1 / term) for term in (5040, 120, 6, 1))
# tanh(x) as x·A(x²)/B(x²) on [−7.9, 7.9]: ptanh of the Eigen library
TANH_END = np.float32(7.9)
TANH_ABOVE = tuple(
    np.float32(term)
    for term in (
        -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-8,
        1.48572235717979e-5, 6.37261928875436e-4, 4.89352455891786e-3,
    )
)  # fmt: skip
TANH_BELOW = tuple(
    np.float32(term)
    for term in (1.19825839466702e-6, 1.18534705686654e-4, 2.26843463243900e-3, 4.89352518554385e-3)
)


@intrinsic
def _float_bits(_, number):
    def build(_, builder, __, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return (types.int32(types.float32), build) if number == types.float32 else None


@intrinsic
def _bits_float(_, bits):
    def build(_, builder, __, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return (types.float32(types.int32), build) if bits == types.int32 else None


@kernel
def _log(x):
    """Natural logarithm of a positive normal float32."""
    bits = _float_bits(x)
    exponent = np.float32(np.int32((bits >> EXPONENT_SHIFT) - EXPONENT_BIAS))
    mantissa = _bits_float(np.int32((bits & MANTISSA) | EXPONENT_OF_HALF))  # in [½, 1)
    small = mantissa < SQRT_HALF
    m = (mantissa + mantissa if small else mantissa) - ONE
    exponent = exponent - ONE if small else exponent
    a, b, c, d, e, f, g, h, i = LOG_TERMS
    high = (((a * m + b) * m + c) * m + d) * m + e
    poly = (((high * m + f) * m + g) * m + h) * m + i
    square = m * m
    return (poly * m * square - HALF * square) + m + exponent * LN_2


@kernel
def _tanh(x):
    x = TANH_END if x > TANH_END else x
    x = -TANH_END if x < -TANH_END else x
    s = x * x
    a, b, c, d, e, f, g = TANH_ABOVE
    above = (((((a * s + b) * s + c) * s + d) * s + e) * s + f) * s + g
    h, i, j, k = TANH_BELOW
    return x * above / (((h * s + i) * s + j) * s + k)


@kernel
def unary(probability, epsilon, tau, out):
    """ΔU = U_background − U_foreground with U_l = −log(p_l + ε)/(τ·σ(p_l)).

    1/σ(p) = 1 + e^(−p); with u = p − ½ both exponentials are e^(−½)·(cosh u ∓ sinh u).
    ``probability`` and ``out``: float32 (N,).
    """
    scale = ONE / tau
    c6, c4, c2, c0 = COSH_TERMS
    s7, s5, s3, s1 = SINH_TERMS
    for n in range(probability.size):
        p = probability[n]
        u = p - HALF
        s = u * u
        cosh = ((c6 * s + c4) * s + c2) * s + c0
        sinh = (((s7 * s + s5) * s + s3) * s + s1) * u
        foreground = _log(p + epsilon) * (ONE + ROOT_E * (cosh - sinh))
        background = _log((ONE - p) + epsilon) * (ONE + ROOT_E * (cosh + sinh))
        out[n] = scale * (foreground - background)


@kernel
def difference(logit, out):
    """D = Q_foreground − Q_background = tanh(½·logit); float32 (N,)."""
    for n in range(logit.size):
        out[n] = _tanh(HALF * logit[n])


@kernel
def marginal(logit, out):
    """Q_foreground = ½·(1 + tanh(½·logit)); float32 (N,)."""
    for n in range(logit.size):
        out[n] = HALF + HALF * _tanh(HALF * logit[n])


@kernel
def above(logit, least, out):
    """Where the logit exceeds ``least``; bool (N,)."""
    for n in range(logit.size):
        out[n] = logit[n] > least


@kernel
def symmetric_norm(total):
    """1/√(K 1 + 1e-20) in place; float32 (N,). A filter's rounding may leave K 1 below 0."""
    for n in range(total.size):
        positive = total[n] if total[n] > 0 else np.float32(0)
        total[n] = ONE / np.sqrt(positive + np.float32(1e-20))


@kernel
def add_message(compat, norm, message, logit):
    """logit += compat · n ⊙ K(n ⊙ D); float32 (N,)."""
    for n in range(logit.size):
        logit[n] += compat * norm[n] * message[n]
