"""Random views with depth: exact against the scene's geometry, repeatable, varied."""

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.depth_views import DepthViewer
from spear_ros.simulation.world import World


@pytest.fixture(scope='module')
def viewer():
    world = World(get_robot('wx250s'))
    try:
        made = DepthViewer(world, (84, 112))
    except UserError as error:
        pytest.skip(str(error))
    yield made, world
    made.close()
    world.close()


def points_in_base(view, world, camera='external'):
    height, width = view.depth_m.shape
    focal = 0.5 * height / np.tan(0.5 * view.fov_y_rad)
    v, u = np.mgrid[0:height, 0:width]
    rays = np.stack([(u + 0.5 - width / 2) / focal, (v + 0.5 - height / 2) / focal,
                     np.ones_like(u)], -1)  # fmt: skip
    points = rays * view.depth_m[..., None]
    T = world.camera_info(camera).T_base_camera
    return points @ T[:3, :3].T + T[:3, 3]


def test_depth_and_field_of_view_put_the_table_at_height_zero(viewer):
    made, world = viewer
    seen = 0
    for seed in range(12):
        view = made.view(seed)
        fov = np.rad2deg(view.fov_y_rad)
        if not np.isclose(fov, world.model.cam_fovy[world.model.camera('external').id]):
            continue  # seen by the wrist camera
        heights = points_in_base(view, world)[view.depth_m < 6.0][:, 2]
        # The floor lies at -0.75 m; of what is above it the table's top is the most frequent.
        top = heights[np.abs(heights) < 0.1]
        if len(top) > 500:
            assert abs(np.median(top)) < 4e-3
            seen += 1
    assert seen >= 4


def test_a_view_is_repeatable_and_no_two_are_alike(viewer):
    made, _ = viewer
    a, b, again = made.view(3), made.view(4), made.view(3)
    np.testing.assert_array_equal(a.depth_m, again.depth_m)
    np.testing.assert_array_equal(a.image, again.image)
    assert np.abs(a.image.astype(int) - b.image).mean() > 5


def test_some_rooms_are_open_to_a_background_without_depth(viewer):
    made, _ = viewer
    shares = [float((made.view(seed).depth_m > 6.5).mean()) for seed in range(20)]
    assert any(share > 0.02 for share in shares)
    assert any(share == 0.0 for share in shares)
