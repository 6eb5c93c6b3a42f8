"""Ranking the users of a split, and RecBole's metrics of it."""
