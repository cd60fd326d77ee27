"""Names of published tensors <-> names of ours, from one table, strict in both directions.

A table is a list of :class:`Rule`. One of our tensors may be several published ones stacked along
the first axis (fused projections); the rule then says how many rows each has, which makes the table
invertible. What fits no rule is never dropped in silence: :class:`KeyReport` lists it with the
closest name that is known.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from spear_ros.core.errors import UserError

Shape = tuple[int, ...]


class TensorSource(Protocol):
    """Named tensors that are read one at a time: files, or a dictionary in memory."""

    def names(self) -> Iterable[str]: ...  # noqa: D102
    def shape(self, name: str) -> Shape: ...  # noqa: D102
    def dtype(self, name: str) -> torch.dtype: ...  # noqa: D102
    def get(self, name: str) -> torch.Tensor: ...  # noqa: D102


class StateDictSource:
    """A state dict in memory as a :class:`TensorSource`."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state

    def names(self) -> Iterable[str]:
        """Names."""
        return self._state.keys()

    def shape(self, name: str) -> Shape:
        """Shape of one tensor."""
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Type of one tensor."""
        return self._state[name].dtype

    def get(self, name: str) -> torch.Tensor:
        """The tensor itself, not a copy."""
        return self._state[name]


@dataclass(frozen=True, slots=True)
class Rule:
    """One of our tensors and the published ones it is made of.

    ``{i}`` in the names stands for the layers 0 .. ``layers`` - 1.
    """

    ours: str
    published: tuple[str, ...]
    rows: tuple[int, ...] = ()
    """Rows of each published tensor, where there are several."""
    layers: int = 0
    """0: the rule holds once; else ``{i}`` runs over the layers."""
    lead: int = 0
    """Leading axes of length 1 that only the published tensor has."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One of our tensors after ``{i}`` is filled in."""

    published: tuple[str, ...]
    rows: tuple[int, ...] = ()
    lead: int = 0


def expand(rules: Iterable[Rule]) -> dict[str, Piece]:
    """Fill in the layers: our name -> published names."""
    table: dict[str, Piece] = {}
    for rule in rules:
        assert len(rule.published) == 1 or len(rule.rows) == len(rule.published), rule
        for i in range(rule.layers or 1):
            ours = rule.ours.replace('{i}', str(i))
            assert ours not in table, f'two rules give {ours}'
            names = tuple(p.replace('{i}', str(i)) for p in rule.published)
            table[ours] = Piece(names, rule.rows, rule.lead)
    return table


def our_shape(piece: Piece, source: TensorSource) -> Shape:
    """Shape that our tensor gets from the published ones."""
    shapes = [source.shape(name) for name in piece.published]
    if len(shapes) == 1:
        lead = piece.lead if shapes[0][: piece.lead] == (1,) * piece.lead else 0
        return shapes[0][lead:]
    return (sum(s[0] for s in shapes), *shapes[0][1:])


def to_ours(piece: Piece, source: TensorSource) -> torch.Tensor:
    """Read our tensor from the published ones (stacked where there are several)."""
    parts = [source.get(name) for name in piece.published]
    return parts[0].flatten(0, piece.lead) if len(parts) == 1 else torch.cat(parts)


def to_published(
    table: Mapping[str, Piece], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Write our tensors under the published names; the inverse of reading them.

    ``state`` must hold every name of the table; further names are left out.
    """
    published: dict[str, torch.Tensor] = {}
    for ours, piece in table.items():
        tensor = state[ours][(None,) * piece.lead]
        parts = tensor.split(list(piece.rows)) if len(piece.published) > 1 else (tensor,)
        published.update(zip(piece.published, parts, strict=True))
    return published


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyReport:
    """Everything about the names of a checkpoint that does not fit, and what was left out."""

    missing: tuple[str, ...] = ()
    """Needed and not there."""
    unexpected: tuple[str, ...] = ()
    """There and not known."""
    misshapen: tuple[str, ...] = ()
    """``name: has (2, 3), needs (3, 2)``."""
    ignored: tuple[str, ...] = ()
    """There, known, and not used by our networks (say why where the table is)."""
    closest: Mapping[str, str] = field(default_factory=dict)
    """For a missing or unexpected name the most similar one on the other side."""

    @property
    def fits(self) -> bool:
        """Whether every name was matched."""
        return not (self.missing or self.unexpected or self.misshapen)

    def lines(self) -> list[str]:
        """The whole report for a terminal."""
        out = [f'missing: {name}{self._hint(name)}' for name in self.missing]
        out += [f'unexpected: {name}{self._hint(name)}' for name in self.unexpected]
        out += [f'wrong shape: {text}' for text in self.misshapen]
        if self.ignored:
            out.append(f'not used: {len(self.ignored)} tensors, e.g. {self.ignored[0]}')
        return out

    def require_fit(self, where: object, mend: str) -> None:
        """Raise one sentence that names the first of each kind of fault.

        Raises:
            UserError: something does not fit.
        """
        if self.fits:
            return
        parts = []
        for names, what in ((self.missing, 'missing'), (self.unexpected, 'unexpected')):
            if names:
                parts.append(f'{len(names)} {what} (first "{names[0]}"{self._hint(names[0])})')
        if self.misshapen:
            parts.append(f'{len(self.misshapen)} of wrong shape (first {self.misshapen[0]})')
        raise UserError(f'{where}: tensors do not fit: {", ".join(parts)}; {mend}')

    def _hint(self, name: str) -> str:
        return f', closest is "{self.closest[name]}"' if name in self.closest else ''


def compare(
    table: Mapping[str, Piece],
    source: TensorSource,
    needed: Mapping[str, Shape],
    ignorable: Iterable[str] = (),
) -> KeyReport:
    """Hold a source against a table and the shapes that our networks need.

    Args:
        table: our name -> published names; must cover ``needed``.
        source: the published tensors.
        needed: our name -> shape.
        ignorable: regular expressions of published names that are known and not used.
    """
    assert needed.keys() <= table.keys(), sorted(needed.keys() - table.keys())[:5]
    present = set(source.names())
    wanted = {name: ours for ours in needed for name in table[ours].published}
    missing = sorted(wanted.keys() - present)
    patterns = [re.compile(p) for p in ignorable]
    spare = sorted(present - wanted.keys())
    ignored = [n for n in spare if any(p.fullmatch(n) for p in patterns)]
    unexpected = [n for n in spare if n not in set(ignored)]
    misshapen = []
    for ours, shape in needed.items():
        piece = table[ours]
        if all(name in present for name in piece.published):
            has = our_shape(piece, source)
            if tuple(has) != tuple(shape):
                names = ' + '.join(piece.published)
                misshapen.append(f'{names} has {tuple(has)}, the config needs {tuple(shape)}')
    return KeyReport(
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misshapen=tuple(misshapen),
        ignored=tuple(ignored),
        closest=_closest(missing, unexpected),
    )


def _closest(missing: list[str], unexpected: list[str], limit: int = 50) -> dict[str, str]:
    """Similar names across the two lists; only for the first few, as the search is quadratic."""
    found = {}
    for names, others in ((missing, unexpected), (unexpected, missing)):
        for name in names[:limit]:
            near = difflib.get_close_matches(name, others[:2000], n=1, cutoff=0.6)
            if near:
                found[name] = near[0]
    return found


class MappedSource:
    """A source seen through a table: our names, our shapes, one tensor at a time."""

    def __init__(self, table: Mapping[str, Piece], source: TensorSource) -> None:
        self.table = table
        self.source = source

    def names(self) -> Iterable[str]:
        """Our names."""
        return self.table.keys()

    def shape(self, name: str) -> Shape:
        """Shape of one of our tensors."""
        return our_shape(self.table[name], self.source)

    def dtype(self, name: str) -> torch.dtype:
        """Type of the (first) published tensor."""
        return self.source.dtype(self.table[name].published[0])

    def get(self, name: str) -> torch.Tensor:
        """One of our tensors; may be a view of the source's."""
        return to_ours(self.table[name], self.source)
