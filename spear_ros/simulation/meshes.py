"""Finds the robots' surface meshes in the PyPI package ``rtb-data`` (metadata: MIT).

Nothing of it is copied into this repository: meshes are read from where pip put them, and without
the package the simulator says so in one sentence. Only shapes come from there; joint trees come
from :class:`~spear_ros.robots.spec.RobotSpec`, because the package's WidowX description has the old
signs of two joints.
"""

import importlib.util
from pathlib import Path

from spear_ros.core.errors import UserError

PANDA = 'meshes/FRANKA-EMIKA/Panda'
WX250S = 'xacro/trossen_descriptions/meshes/meshes_wx250s'


def mesh_root(package: str = 'rtbdata') -> Path:
    """Return the folder of the installed mesh package, without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise UserError(
            f'the simulator draws its robots with the meshes of "rtb-data", but the module '
            f'{package} is not installed; install it with "pip install rtb-data==2.0.0".'
        )
    return Path(places[0])


def mesh_file(folder: str, name: str, root: Path | None = None) -> str:
    """Return the absolute path of one mesh, for example ``(PANDA, 'link0.stl')``.

    Raises:
        UserError: the package is missing or does not hold the file.
    """
    path = (root or mesh_root()) / folder / name
    if not path.is_file():
        raise UserError(
            f'the mesh {name} is not at {path}; install the version that the simulator was made '
            'for with "pip install rtb-data==2.0.0".'
        )
    return str(path)
