"""Weights of the members of an ensemble, found on validation."""

from collections.abc import Callable, Sequence

TRIED = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
_ROUNDS = 3
_GAIN = 0.005  # of the score, relative; less is taken for chance


def find_weights(members: int, score: Callable[[Sequence[float]], float]) -> list[float]:
    """Weights with a high score: from 1 each, one after the other is set to the best of `TRIED`.

    A weight changes only where that is worth something, so members that are alike keep equal ones.

    Args:
        members: how many there are.
        score: of weights; greater is better.
    """
    weights = [1.0] * members
    best = score(weights)
    for _ in range(_ROUNDS):
        before = list(weights)
        for number in range(members):
            trials = [[*weights[:number], tried, *weights[number + 1 :]] for tried in TRIED]
            scores = [score(trial) for trial in trials]
            found = max(range(len(trials)), key=scores.__getitem__)
            if scores[found] > best + _GAIN * abs(best):
                weights, best = trials[found], scores[found]
        if weights == before:
            break
    return weights
