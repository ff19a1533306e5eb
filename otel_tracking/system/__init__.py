"""Figures of the machine that a run trains on, sampled beside it."""
