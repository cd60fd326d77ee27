"""Finds the files that are installed into ``share/spear_ros``: config, launch, models.

Three kinds of installation put them in different places: colcon (``AMENT_PREFIX_PATH``), ``pip
install`` (``sys.prefix/share``), an editable install or a clone (the source tree). The source tree
wins when this very module runs from it, so that an edit is never shadowed by an old installation.
"""

import os
import sys
from pathlib import Path

from spear_ros.core.errors import UserError

PACKAGE = 'spear_ros'


def share_roots() -> list[Path]:
    """Return the existing share folders, best first."""
    source = Path(__file__).resolve().parents[2]
    candidates = [source] if (source / 'package.xml').is_file() else []
    for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        if prefix:
            candidates.append(Path(prefix) / 'share' / PACKAGE)
    candidates.append(Path(sys.prefix) / 'share' / PACKAGE)
    return [c for c in candidates if c.is_dir()]


def share_file(relative: str) -> Path:
    """Return the path of an installed file or folder such as ``config/robots/franka.yaml``.

    Raises:
        UserError: it is nowhere; the sentence lists the places that were searched.
    """
    roots = share_roots()
    for root in roots:
        if (root / relative).exists():
            return root / relative
    places = ', '.join(str(r) for r in roots) or 'no share folder at all'
    raise UserError(f'{relative} is not installed (searched {places}); install the package again.')
