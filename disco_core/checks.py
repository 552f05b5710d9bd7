"""Checks of arguments, shared by all modules: an error names the bad value and what is allowed."""

from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T")

MOST_TOKENS = 2**31 - 1  # so that a sum over any array that fits in memory stays exact


def numbers(values: ArrayLike, name: str) -> Floats:
    """The values as float64, of any shape and also infinite; InputError for NaN, text, dates or an empty array."""
    try:
        raw = np.asarray(values)
        if raw.dtype.kind not in "iufO":
            raise TypeError(raw.dtype)
        array = raw.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be numbers, got {values!r:.80}") from error
    if array.size == 0:
        raise InputError(f"{name} must not be empty")
    if np.isnan(array.min()):  # min finds a NaN without an array of the same size
        raise InputError(f"{name} must be numbers, got nan")
    return array


def seconds(values: ArrayLike, name: str, *, allow_inf: bool = False, unit: str = " seconds") -> Floats:
    """Numbers of at least 0, finite unless `allow_inf`, of any shape; InputError otherwise."""
    array = numbers(values, name)
    if array.min() < 0 or (not allow_inf and np.isinf(array.max())):
        required = "non-negative" if allow_inf else "finite and non-negative"
        bad = array[(array < 0) | (np.isinf(array) & (not allow_inf))]
        raise InputError(f"{name} must be {required}{unit}, got {bad[0]}")
    return array


def tokens(values: ArrayLike, name: str) -> Ints:
    """Token counts from 1 to 2^31 - 1 as one-dimensional int64; InputError otherwise."""
    if isinstance(values, np.ndarray) and values.dtype == np.int64:
        counts: Ints = values
    else:
        array = numbers(values, name)
        fractions = array[array != np.floor(array)]
        if fractions.size:
            raise InputError(f"{name} must be whole numbers of at least 1, got {fractions[0]}")
        counts = np.clip(array, -1, MOST_TOKENS + 1).astype(np.int64)
    if counts.ndim != 1 or counts.size == 0:
        raise InputError(f"{name} must be one-dimensional and not empty, got shape {counts.shape}")
    low, high = counts.min(), counts.max()
    if low < 1 or high > MOST_TOKENS:
        bad = np.asarray(values).ravel()[np.argmin(counts) if low < 1 else np.argmax(counts)]
        raise InputError(f"{name} must be whole numbers from 1 to {MOST_TOKENS}, got {bad}")
    return counts


def number(value: Any, name: str, low: float = 0.0, high: float = np.inf, *, above: bool = False) -> float:
    """A finite number in [low, high], or in (low, high] with `above`; InputError otherwise."""
    try:
        if isinstance(value, str | bytes | bool | np.bool_):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be a number, got {value!r:.80}") from error
    if not (np.isfinite(result) and low <= result <= high) or (above and result == low):
        allowed = f"above {low:g}" if above else f"at least {low:g}" if high == np.inf else f"in [{low:g}, {high:g}]"
        raise InputError(f"{name} must be finite and {allowed}, got {value}")
    return result


def fraction(value: Any, name: str) -> float:
    """A number in [0, 1]; InputError otherwise."""
    return number(value, name, 0.0, 1.0)


def positive(value: Any, name: str) -> float:
    """A finite number above 0; InputError otherwise."""
    return number(value, name, above=True)


def count(value: Any, name: str) -> int:
    """A whole number from 1 to 2^31 - 1; InputError otherwise."""
    with suppress(InputError):
        result = number(value, name, 1, MOST_TOKENS)
        if result.is_integer():
            return int(result)
    big = isinstance(value, int | float | np.integer | np.floating) and value > MOST_TOKENS
    limit = f"at most {MOST_TOKENS}" if big else "at least 1"
    raise InputError(f"{name} must be a whole number of {limit}, got {value!r:.80}")


def instance_of(value: Any, expected: type[T], name: str) -> T:
    """The value, if it is an instance of `expected`; InputError otherwise."""
    if not isinstance(value, expected):
        allowed = " or ".join(map(str, expected)) if issubclass(expected, Enum) else f"a {expected.__name__}"
        raise InputError(f"{name} must be {allowed}, got {value!r:.80}")
    return value


def generator(rng: Any) -> np.random.Generator:
    """A NumPy Generator; InputError otherwise, also for a bare seed: the caller decides what shares a seed."""
    if not isinstance(rng, np.random.Generator):
        raise InputError(
            f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0), got {rng!r:.80}"
        )
    return rng


def read_only(array: NDArray[Any], *, copy: bool = True) -> Any:
    """A read-only copy of the array; with `copy=False` a read-only view of what its owner can still change."""
    result = array.copy() if copy else array.view()
    result.setflags(write=False)
    return result
