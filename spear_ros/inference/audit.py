"""Proof on a CPU that a chunk could be captured: a log of its operations, and what may not be.

A CUDA graph records launches. A value that is read back, a shape that depends on one, or memory
that is copied from the host in passing cannot be recorded, and fails at activation on a robot's
GPU. All of these are visible to a dispatch mode on any device.
"""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = {
    'aten._local_scalar_dense': 'reads a value back to the host',
    'aten.is_nonzero': 'branches on a value',
    'aten.equal': 'branches on a value',
    'aten.nonzero': 'has a shape that depends on values',
    'aten.masked_select': 'has a shape that depends on values',
    'aten._unique2': 'has a shape that depends on values',
    'aten.unique_dim': 'has a shape that depends on values',
    'aten.lift_fresh': 'was copied from the host: torch.tensor of Python numbers',
}

# What neither launches a kernel nor allocates: other strides on the same memory, or bookkeeping.
VIEWS = frozenset(
    f'aten.{name}'
    for name in (
        'view', '_unsafe_view', 'alias', 'as_strided', 'chunk', 'detach', 'expand', 'narrow',
        'permute', 'select', 'slice', 'split', 'split_with_sizes', 'squeeze', 't', 'transpose',
        'unbind', 'unflatten', 'unsqueeze', 'view_as_complex', 'view_as_real', 'movedim',
        'empty', 'empty_strided', 'empty_like', 'new_empty', 'reshape', '_reshape_alias', 'lift',
    )
)  # fmt: skip


class Audit(TorchDispatchMode):
    """Logs operations while it is entered.

    Boolean indexing shows itself as an ``index`` with a boolean tensor among its arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        """Each operation with the shapes of its tensors, results last."""
        self.forbidden: list[str] = []
        """Operations that a capture cannot hold, with the reason."""
        self.bytes_moved = 0
        """Of all operations that are no views: operands and results, each counted once."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = '.'.join(str(func).split('.')[:2])
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.log.append((name, tuple(tuple(t.shape) for t in given + made)))
        if name in FORBIDDEN:
            self.forbidden.append(f'{name}: {FORBIDDEN[name]}')
        elif name in ('aten.index', 'aten.index_put', 'aten.index_put_') and any(
            t.dtype in (torch.bool, torch.uint8) for t in given[1:]
        ):
            self.forbidden.append(f'{name}: boolean index, a shape that depends on values')
        if name not in VIEWS:
            seen = {_place(t): t.numel() * t.element_size() for t in given + made}
            self.bytes_moved += sum(seen.values())
        return result

    @property
    def launches(self) -> Counter[str]:
        """How often each operation that is no view was called."""
        return Counter(name for name, _ in self.log if name not in VIEWS)


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """Name a piece of memory, also on the device ``meta``, which has none."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset()
