"""`python -m tests.fuzz NAME|all --seconds N [--seed S]`: mutated inputs into a decoder until the time is over.

A finding ends the run with the input in hex, which goes into that decoder's tests.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from meshnode import errors
from tests.fuzz import mutate, targets

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RecursionError)
FAULTS += (TypeError, ValueError)
"""What a decoder must not raise: whatever Python raises at bytes that were not thought of."""


def fuzz(target: targets.Target, seed: int, seconds: float) -> bool:
    """Whether nothing was found."""
    rng = random.Random(seed)
    taken = refused = 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        data = mutate.mutated(target.seeds, rng)
        try:
            target.decode(data)
            taken += 1
        except errors.PeerError:
            refused += 1
        except FAULTS:
            traceback.print_exc()
            print(f"{target.name}: seed {seed}, input {taken + refused}: {data.hex()}")
            return False
    print(f"{target.name}: {taken} taken, {refused} refused, nothing else, from seed {seed}")
    return True


def main() -> int:
    known = {target.name: target for target in targets.TARGETS}
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=[*known, "all"])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="random unless given")
    wanted = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if wanted.seed is None else wanted.seed
    chosen = list(known.values()) if wanted.name == "all" else [known[wanted.name]]
    return 0 if all(fuzz(target, seed, wanted.seconds) for target in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
