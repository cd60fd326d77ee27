"""Which questions an epoch asks where sets of pictures have weights of their own."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spear_ros.core.errors import UserError
from spear_ros.data.mixtures import Mixture, probabilities


class MixedOrder:
    """Orders of epochs in which every source has its share of the questions.

    An epoch is as long as the list of questions. Of a source whose share is smaller than itself,
    every epoch takes other questions; one whose share is larger comes round several times, each of
    its questions equally often but for one.

    Args:
        sources: name of the data that each question is from.
        mixture: shares; its parts are names of sources.
        seed: of the draw.

    Raises:
        UserError: a source without a weight, or a weight without questions.
    """

    def __init__(self, sources: Sequence[str], mixture: Mixture, seed: int) -> None:
        named = np.array(sources)
        known = [part.dataset for part in mixture.parts]
        strange = sorted(set(sources) - set(known))
        if strange:
            raise UserError(
                f'mixture {mixture.name}: questions of the source "{strange[0]}" have no weight; '
                'add a part, or annotate with --source set to one of ' + ', '.join(known) + '.'
            )
        groups = {name: np.flatnonzero(named == name) for name in known}
        shares = probabilities(mixture, {name: len(group) for name, group in groups.items()})
        self._groups, self._seed = groups, seed
        self.counts = whole_shares(shares, len(sources))
        """Questions of an epoch by source."""

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Numbers of the questions of an epoch, in order."""
        rng = np.random.default_rng([self._seed, epoch])
        taken = [_taken(self._groups[name], count, rng) for name, count in self.counts.items()]
        return rng.permutation(np.concatenate(taken))


def whole_shares(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """``total`` dealt out by shares that sum to 1, to whole numbers (greatest remainder)."""
    exact = {name: share * total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _taken(group: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` of a group: all of it as often as it goes, then a draw without repetition."""
    rounds, rest = divmod(count, len(group))
    return np.concatenate([np.tile(group, rounds), rng.permutation(group)[:rest]])
