"""Size of a flight recording: real pictures as the recorder packs them, and everything else.

    python benchmarks/flight_size.py ../shared/data/real_recordings/tabletop_images

For each picture or video of the folder: one packed picture at the recorder's size and what 60 s of
two cameras at 5 Hz take; beside them the joint states, targets and states of a Franka at 100 and
10 Hz. The last line is one JSON object.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from spear_msgs.msg import ExecutorStatus, PolicyStatus

from spear_ros.ros.recording import RecorderSettings
from spear_ros.ros.recording_topics import pack

CAMERAS = 2
TEXT_BYTES = 300
"""What names and sentences add to an empty status."""


def packed_bytes(picture: np.ndarray) -> int:
    """Bytes of one BGR picture as the flight recording keeps it."""
    message = Image(height=picture.shape[0], width=picture.shape[1], encoding='bgr8')
    message.step = 3 * picture.shape[1]
    message.data = picture.tobytes()
    return len(pack(message, True) or b'')


def pictures(path: Path) -> list[np.ndarray]:
    """All frames of a video, or one picture."""
    if path.suffix != '.mp4':
        return [cv2.imread(str(path))]
    video, found = cv2.VideoCapture(str(path)), []
    while (frame := video.read())[0]:
        found.append(frame[1])
    return found


def main() -> None:
    """Print the table and the line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path)
    args = parser.parse_args()
    settings = RecorderSettings()
    count = CAMERAS * settings.window_s * settings.image_rate_hz
    sizes = {}
    for path in sorted(args.folder.glob('*.*')):
        size = float(np.mean([packed_bytes(p) for p in pictures(path)]))
        sizes[path.name] = round(count * size / 1e6, 1)
        print(f'{path.name:40s} {size / 1e3:6.1f} kB a picture, {count * size / 1e6:5.1f} MB')
    joints = JointState(name=[f'fr3_joint{i}' for i in range(1, 8)])
    joints.position = joints.velocity = joints.effort = [0.0] * 7
    per_s = 100 * (len(serialize_message(joints)) + len(serialize_message(PoseStamped())))
    for status in (ExecutorStatus(), PolicyStatus()):
        per_s += 10 * (len(serialize_message(status)) + TEXT_BYTES)
    rest = round(settings.window_s * per_s / 1e6, 1)
    print(
        json.dumps(
            {
                'seconds': settings.window_s,
                'pictures_mb': sizes,
                'rest_mb': rest,
                'most_mb': round(max(sizes.values()) + rest, 1),
                'limit_mb': settings.max_flight_bytes / 1e6,
            }
        )
    )


if __name__ == '__main__':
    main()
