"""Damages files at random: cut, flipped and repeated bytes, and values that no writer of mien would write.

    python -m tests.readers.mutations --count 20000 --seed 1

damages each kind of file so many times in all, and prints how many were read, refused, and failed with an error that
has no type of mien. The exit status is 1 if there was such an error.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from tests.formats.targets import Target

HOSTILE = (
    b"0", b"-1", b"1e400", b"NaN", b"-Infinity", b"nan", b"10000000000000", b"1" * 5000, b"null", b'"x"', b"[]", b"{}",
    b"true", b"1.5", b'""', b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"\x00", b'"' + b"y" * 200_000 + b'"',
)  # fmt: skip
"""Texts that replace a number or a word."""
_WORD = re.compile(rb"-?[0-9][0-9.e+-]*|\"[^\"]*\"|null|true|false|[A-Za-z_]+")


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to three random changes."""
    for _ in range(int(rng.integers(1, 4))):
        content = _CHANGES[int(rng.integers(len(_CHANGES)))](content, rng)
    return content


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(max(len(content), 1), size=int(rng.integers(1, 5))):
        if changed:
            changed[int(place)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _repeat(content: bytes, rng: np.random.Generator) -> bytes:
    first, end = sorted(int(place) for place in rng.integers(len(content) + 1, size=2))
    return content[:end] + content[first:end][:10_000] + content[end:]


def _replace(content: bytes, rng: np.random.Generator) -> bytes:
    words = list(_WORD.finditer(content))
    if not words:
        return content
    word = words[int(rng.integers(len(words)))]
    return content[: word.start()] + HOSTILE[int(rng.integers(len(HOSTILE)))] + content[word.end() :]


_CHANGES = (_cut, _flip, _flip, _repeat, _replace, _replace, _replace)


def run(target: Target, folder: Path, *, count: int, seed: int) -> tuple[int, int, list[str]]:
    """Damage a file many times.

    Returns:
        How many were read, how many were refused, and the untyped errors.
    """
    rng, whole = np.random.default_rng((seed, sum(target.name.encode()))), target.honest(folder)
    read, untyped = 0, []
    for number in range(count):
        try:
            read += target.survives(folder, damaged(whole, rng))
        except Exception as error:  # noqa: PERF203 (every one is counted)
            untyped.append(f"{target.name} {number}: {type(error).__name__}: {str(error)[:200]}")
    return read, count - read - len(untyped), untyped


def main() -> None:
    from tests.readers.targets import TARGETS

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", choices=sorted(TARGETS))
    given = options.parse_args()
    chosen = [TARGETS[given.only]] if given.only else list(TARGETS.values())
    warnings.simplefilter("ignore")
    failures: list[str] = []
    print("| file | tried | read | refused | untyped | CPU s |\n|---|---:|---:|---:|---:|---:|")
    for target in chosen:
        with tempfile.TemporaryDirectory() as folder:
            start, count = time.process_time(), -(-given.count // len(chosen))
            read, refused, untyped = run(target, Path(folder), count=count, seed=given.seed)
        seconds = time.process_time() - start
        print(f"| {target.name} | {count} | {read} | {refused} | {len(untyped)} | {seconds:.0f} |", flush=True)
        failures += untyped
    print(*failures, sep="\n", file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
