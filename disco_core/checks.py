"""What every room asks of its inputs, said once: the message names the bad value and what is allowed."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def seconds(values: ArrayLike, name: str, *, allow_inf: bool = False) -> Floats:
    """Non-negative times as a float64 array of at least one element, or InputError."""
    array = _numbers(values, name)
    # min and max also find NaN, without a temporary array of the same size
    low, high = array.min(), array.max()
    if np.isnan(low) or low < 0 or (np.isinf(high) and not allow_inf):
        kind = "non-negative" if allow_inf else "finite and non-negative"
        bad = array[~((array >= 0) & (allow_inf | np.isfinite(array)))]
        raise InputError(f"{name} must be {kind} seconds, got {bad.flat[0]!s}")
    return array


def tokens(values: ArrayLike, name: str) -> Ints:
    """Token counts of at least 1 as a one-dimensional int64 array of at least one element, or InputError."""
    raw = np.asarray(values)
    if raw.dtype != np.int64:
        as_float = _numbers(values, name)
        bad = as_float[~((as_float >= 1) & (as_float < 2.0**62) & (as_float == np.floor(as_float)))]
        if bad.size:
            raise InputError(f"{name} must be whole numbers of at least 1, got {bad.flat[0]!s}")
        raw = as_float.astype(np.int64)
    if raw.ndim != 1 or raw.size == 0:
        raise InputError(f"{name} must be a non-empty one-dimensional array, got shape {raw.shape}")
    if raw.min() < 1:
        raise InputError(f"{name} must be whole numbers of at least 1, got {raw.min()}")
    return raw


def fraction(value: float, name: str) -> float:
    """A number in [0, 1], or InputError."""
    return between(value, name, 0.0, 1.0)


def positive(value: float, name: str) -> float:
    """A finite number above 0, or InputError."""
    number = _number(value, name)
    if not (np.isfinite(number) and number > 0):
        raise InputError(f"{name} must be finite and above 0, got {value}")
    return number


def non_negative(value: float, name: str) -> float:
    """A finite number of at least 0, or InputError."""
    number = _number(value, name)
    if not (np.isfinite(number) and number >= 0):
        raise InputError(f"{name} must be finite and at least 0, got {value}")
    return number


def between(value: float, name: str, low: float, high: float) -> float:
    """A number in [low, high], or InputError."""
    number = _number(value, name)
    if not low <= number <= high:
        raise InputError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
    return number


def _number(value: float, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a number, got {value!r}") from error


def _numbers(values: ArrayLike, name: str) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers, got {values!r:.60}") from error
    if array.size == 0:
        raise InputError(f"{name} must not be empty")
    return array
