"""The policies by name, imported only when asked for.

Each policy is one module of this folder with a function ``create(*, robot, checkpoint, seed,
device, options) -> Policy``; ``spear1`` is the only one that needs torch, so the other three start
on a machine without it.
"""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from spear_ros.core.errors import UserError
from spear_ros.policies.base import Policy
from spear_ros.robots.spec import RobotSpec

POLICIES: Mapping[str, str] = MappingProxyType(
    {
        'spear1': 'spear_ros.policies.spear1',
        'scripted': 'spear_ros.policies.scripted',
        'recorded': 'spear_ros.policies.recorded',
        'hold': 'spear_ros.policies.hold',
    }
)
"""Name -> module that holds ``create``."""

_EXTRAS = {'torch': 'policy', 'safetensors': 'policy', 'tokenizers': 'policy'}


def policy_module(name: str) -> str:
    """Return the module of the policy ``name``.

    Raises:
        UserError: there is no such policy; the sentence names the closest.
    """
    if name in POLICIES:
        return POLICIES[name]
    near = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.4)
    hint = f'did you mean "{near[0]}"?' if near else f'choose one of {", ".join(POLICIES)}.'
    raise UserError(f'policy "{name}" does not exist; {hint}')


def create_policy(
    name: str,
    *,
    robot: RobotSpec,
    checkpoint: Path | None = None,
    seed: int = 0,
    device: str = 'cpu',
    options: Mapping[str, object] = MappingProxyType({}),
) -> Policy:
    """Build the policy ``name`` for ``robot``.

    Args:
        name: One of :data:`POLICIES`.
        robot: What the chunks are for: embodiment and frames.
        checkpoint: Folder of a checkpoint; only ``spear1`` needs one.
        seed: Seeds the noise of every chunk together with the observation time.
        device: ``cpu`` or ``cuda``, as torch names it.
        options: What only this policy understands (``recorded``: the motion to give back).

    Raises:
        UserError: unknown name, unusable checkpoint or option, or a Python package that this policy
            needs is not installed.
    """
    module_name = policy_module(name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = (error.name or '').split('.')[0]
        if missing not in _EXTRAS:
            raise
        raise UserError(
            f'policy "{name}" needs the Python package "{missing}", which is not installed; '
            f'install spear_ros with the extra "{_EXTRAS[missing]}" or choose another policy.'
        ) from None
    policy: Policy = module.create(
        robot=robot, checkpoint=checkpoint, seed=seed, device=device, options=options
    )
    return policy


def check_options(name: str, options: Mapping[str, object], known: tuple[str, ...]) -> None:
    """Refuse an option that the policy ``name`` does not understand.

    Raises:
        UserError: an unknown key; the sentence lists the known ones.
    """
    for key in options:
        if key not in known:
            raise UserError(
                f'policy "{name}" has no option "{key}"; '
                f'it knows: {", ".join(known) if known else "none"}.'
            )
