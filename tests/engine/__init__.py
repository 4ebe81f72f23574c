"""Tests of the engine. Torch's waiting threads sleep, as in host.py: on a busy machine spinning costs minutes."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
