"""The one place that imports mujoco: chooses the off-screen renderer before it is too late.

MuJoCo fixes its OpenGL library at import by ``MUJOCO_GL``. Without a display the default fails only
when the first picture is asked for, so EGL is chosen here; a value that the user set wins.
"""

import os
import sys

from spear_ros.core.errors import UserError

_TOO_LATE = 'mujoco' in sys.modules and 'MUJOCO_GL' not in os.environ
"""Somebody imported mujoco first: without a display it has loaded no OpenGL library."""

if 'MUJOCO_GL' not in os.environ and not os.environ.get('DISPLAY'):
    os.environ['MUJOCO_GL'] = 'egl'

try:
    import mujoco
except ImportError as error:
    raise UserError(
        f'the simulator needs mujoco, which cannot be imported ({error}); install the extra with '
        '"pip install spear_ros[sim]".'
    ) from None

__all__ = ['mujoco', 'new_renderer']

MISSING_GL = (
    'the simulated cameras cannot open an off-screen renderer (MUJOCO_GL={backend}: {error}); '
    'install it with "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" and set MUJOCO_GL=egl.'
)
TOO_LATE_GL = (
    'the simulated cameras cannot render because mujoco was imported before spear_ros.simulation '
    'could choose its renderer; set MUJOCO_GL=egl in the environment.'
)


def new_renderer(model: 'mujoco.MjModel', width: int, height: int) -> 'mujoco.Renderer':
    """Open an off-screen renderer; it may only be used in the thread that called this.

    Raises:
        UserError: no OpenGL library or no software driver is installed.
    """
    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:
        # mujoco, PyOpenGL and ctypes raise seven different classes here, RuntimeError to OSError.
        if _TOO_LATE:
            raise UserError(TOO_LATE_GL) from error
        text = ' '.join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            MISSING_GL.format(backend=os.environ.get('MUJOCO_GL', 'unset'), error=text)
        ) from error
