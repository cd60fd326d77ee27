"""/sim/...: scene reset, object poses, task state, camera pose, faults. No real robot has these."""

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from spear_msgs.msg import ObjectPoses, TaskState
from spear_msgs.srv import ResetScene
from std_msgs.msg import String

from spear_ros.core.errors import UserError
from spear_ros.core.types import EXTERNAL
from spear_ros.ros.conversions import header, object_poses_to_msg, pose_stamped
from spear_ros.ros.qos import STATUS
from spear_ros.ros.sim_drivers.base import TwinClock
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.simulation.world import World

_POSES_HZ, _STATE_HZ, _CAMERA_HZ = 20.0, 5.0, 2.0


class TaskTopics:
    """What the simulator knows and a laboratory does not."""

    def __init__(
        self, node: Node, world: World, base_frame: str, *, faults: FaultBoard, clock: TwinClock
    ) -> None:
        self._node, self._world, self._base = node, world, base_frame
        self._faults, self._clock = faults, clock
        self._poses = node.create_publisher(ObjectPoses, '/sim/object_poses', STATUS)
        self._task = node.create_publisher(TaskState, '/sim/task_state', STATUS)
        self._camera = node.create_publisher(PoseStamped, '/sim/external_camera_pose', STATUS)
        node.create_service(ResetScene, '/sim/reset', self._on_reset)
        node.create_subscription(String, '/sim/fault', self._on_fault, STATUS)
        node.create_timer(1 / _POSES_HZ, self._send_poses)
        node.create_timer(1 / _STATE_HZ, self._send_state)
        node.create_timer(1 / _CAMERA_HZ, self._send_camera)

    def _on_reset(
        self, request: ResetScene.Request, response: ResetScene.Response
    ) -> ResetScene.Response:
        try:
            scene = self._world.reset_scene(int(request.seed), request.family)
        except UserError as error:
            response.message = str(error)
            return response
        response.success, response.instruction = True, scene.instruction
        response.message = f'{len(scene.objects)} objects: {", ".join(scene.objects)}'
        self._send_poses()
        self._send_state()
        self._send_camera()
        return response

    def _on_fault(self, message: String) -> None:
        try:
            self._node.get_logger().info(f'fault: {self._faults.command(message.data)}')
        except UserError as error:
            self._node.get_logger().error(str(error))

    def _send_poses(self) -> None:
        if self._world.scene is not None:
            with self._world.lock:
                poses = self._world.object_poses()
                stamp = self._clock()
            self._poses.publish(object_poses_to_msg(poses, stamp, self._base))

    def _send_state(self) -> None:
        scene = self._world.scene
        if scene is not None:
            self._task.publish(
                TaskState(
                    header=header(self._clock()),
                    instruction=scene.instruction,
                    success=self._world.task_success(),
                    succeeded=self._world.task_succeeded(),
                    seed=scene.seed,
                )
            )

    def _send_camera(self) -> None:
        with self._world.lock:
            T = self._world.camera_info(EXTERNAL).T_base_camera
        self._camera.publish(pose_stamped(T, self._clock(), self._base))
