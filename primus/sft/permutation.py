# SPDX-License-Identifier: Apache-2.0
"""A seeded order of n things that needs no array of n, and the pseudo-random keys that it is made of."""

import math

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_UInt64Array = npt.NDArray[np.uint64]

_TABLE_SIZE = 2**16
_NUM_ROUNDS = 8
# Indices that are permuted at a time: all arrays of a round stay in the cache of a core.
_CHUNK = 2**14


class Permutation:
    """A pseudo-random permutation of the numbers below n, of which each value is computed when it is asked for.

    A generalized Feistel cipher with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains",
    methods 3 and 2). A number is a pair of a digit below `a` and a digit below `b`, and each of 8 rounds adds a hash of
    one digit to the other, which can be undone and so is one-to-one. `a` and `b` are about the root of n, so that fewer
    than `a` pairs stand for no number; what lands there is encrypted again until it is back. The hash is splitmix64
    with a key for each round. Integers only: the same with every version of numpy, on every machine.

    Up to 65,536 numbers are sorted by their keys instead (method 1 there), in a table of 512 KiB at most: a cipher
    reaches only a few of the orders of a small domain.

    Args:
        n: How many numbers, from 1 to 2^63 - 1.
        seed: Any integer.
        stream: Any integer; another stream of the same seed is independent of it.

    Raises:
        ValueError: If `n` is not from 1 to 2^63 - 1.

    Examples:
        >>> sorted(Permutation(5, seed=1)[np.arange(5)].tolist())
        [0, 1, 2, 3, 4]
        >>> Permutation(10**18, seed=1)[np.array([0, 1, 10**18 - 1])].tolist()
        [481417185822191397, 211853289579423653, 549670665478974418]
    """

    def __init__(self, n: int, *, seed: int, stream: int = 0) -> None:
        if not 1 <= n < 2**63:
            raise ValueError(f"a permutation of {n} numbers; it takes from 1 to 2^63 - 1")
        self._n = n
        self._table: IntArray | None = None
        if n <= _TABLE_SIZE:
            self._table = np.argsort(random_keys(n, seed=seed, stream=stream), kind="stable")
        else:
            self._keys = random_keys(_NUM_ROUNDS, seed=seed, stream=stream)
            self._a = np.uint64(math.isqrt(n - 1) + 1)
            self._b = np.uint64(-(-n // int(self._a)))

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, indices: npt.ArrayLike) -> IntArray:
        """The numbers at some places of the order; the shape is that of the places."""
        places = np.asarray(indices, dtype=np.int64)
        if places.size and not (places.min() >= 0 and places.max() < self._n):
            raise IndexError(f"places from {places.min()} to {places.max()} of {self._n} numbers")
        if self._table is not None:
            return self._table[places]
        numbers = places.astype(np.uint64).reshape(-1)
        for start in range(0, len(numbers), _CHUNK):
            self._walk(numbers[start : start + _CHUNK])
        return numbers.view(np.int64).reshape(places.shape)

    def _walk(self, numbers: _UInt64Array) -> None:
        """Replace each number by the first one below n that the cipher leads to."""
        self._encrypt(numbers)
        (outside,) = (numbers >= np.uint64(self._n)).nonzero()
        while len(outside):
            walking = numbers[outside]
            self._encrypt(walking)
            numbers[outside] = walking
            outside = outside[walking >= np.uint64(self._n)]

    def _encrypt(self, numbers: _UInt64Array) -> None:
        left, right = np.divmod(numbers, self._b)
        hashed, scratch = np.empty_like(left), np.empty_like(left)
        for number, key in enumerate(self._keys):
            source, target, base = (right, left, self._a) if number % 2 == 0 else (left, right, self._b)
            np.add(source, key, out=hashed)
            _mix(hashed, scratch)
            # The upper half as a fraction of 2^32, times the base: a digit below it, without a division.
            np.right_shift(hashed, np.uint64(32), out=hashed)
            np.multiply(hashed, base, out=hashed)
            np.right_shift(hashed, np.uint64(32), out=hashed)
            np.add(target, hashed, out=target)
            # Modulo the base: without a sign, what is below zero is larger than any digit.
            np.subtract(target, base, out=scratch)
            np.minimum(target, scratch, out=target)
        np.multiply(left, self._b, out=left)
        np.add(left, right, out=numbers)


def random_keys(num: int, *, seed: int, stream: int) -> npt.NDArray[np.uint64]:
    """Pseudo-random 64-bit keys, the same with every version of numpy.

    splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") of the index.

    Args:
        num: How many keys.
        seed: Any integer.
        stream: Any integer; another stream of the same seed is independent of it.

    Returns:
        Shape [num]; the first keys do not depend on `num`.

    Examples:
        >>> random_keys(2, seed=0, stream=0).tolist() == random_keys(3, seed=0, stream=0)[:2].tolist()
        True
    """
    start = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    start = _mixed(start + np.uint64(stream % 2**64))
    return _mixed(start + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, num + 1, dtype=np.uint64))


def _mixed(z: _UInt64Array) -> _UInt64Array:
    _mix(z, np.empty_like(z))
    return z


def _mix(z: _UInt64Array, scratch: _UInt64Array) -> None:
    """The finalizer of splitmix64, in place. Arrays of 64 bits overflow silently, as it needs."""
    np.right_shift(z, np.uint64(30), out=scratch)
    np.bitwise_xor(z, scratch, out=z)
    np.multiply(z, np.uint64(0xBF58476D1CE4E5B9), out=z)
    np.right_shift(z, np.uint64(27), out=scratch)
    np.bitwise_xor(z, scratch, out=z)
    np.multiply(z, np.uint64(0x94D049BB133111EB), out=z)
    np.right_shift(z, np.uint64(31), out=scratch)
    np.bitwise_xor(z, scratch, out=z)
