"""A run's points as files of other kinds, written a block at a time."""
