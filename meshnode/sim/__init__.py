"""Deterministic simulation: fakes, worlds, faults and checkers. Nothing here serves a user."""
