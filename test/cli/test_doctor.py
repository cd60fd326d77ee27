"""`spear doctor` says what works, never raises, and judges by what is essential."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from spear_ros.cli import doctor, doctor_machine
from spear_ros.cli.doctor_machine import Check

ROOT = Path(__file__).resolve().parents[2]
OK = Check(name='a', state='ok', detail='x')
WARN = Check(name='b', state='warn', detail='y', mend='do this')
MISSING = Check(name='c', state='missing', detail='z', mend='do that')


def test_health_is_spoiled_by_what_is_missing_alone() -> None:
    assert doctor.healthy([OK, WARN])
    assert not doctor.healthy([OK, MISSING, WARN])


def test_the_table_shows_a_mend_under_what_is_not_ok(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_table([OK, WARN, MISSING], colour=False)
    out = capsys.readouterr().out
    assert out.index('do this') > out.index('y')
    assert '1 ok, 1 to know, 1 missing' in out


def test_a_check_that_breaks_becomes_a_row_and_the_others_go_on() -> None:
    def broken() -> Iterator[Check]:
        yield OK
        raise RuntimeError('unforeseen')

    rows = list(doctor.guarded(broken, lambda: [WARN]))
    assert [row.state for row in rows] == ['ok', 'missing', 'warn']
    assert 'unforeseen' in rows[1].detail


def test_a_child_that_crashes_hangs_or_raises_is_one_line() -> None:
    assert doctor_machine.ask_child('import os; os.abort()')[1] == 'crashed with signal 6'
    assert 'within' in doctor_machine.ask_child('while True: pass', 0.2)[1]
    answer, problem = doctor_machine.ask_child('raise ValueError("no picture")')
    assert not answer
    assert problem == 'ValueError: no picture'
    assert doctor_machine.ask_child('print({})') == ({}, '')


@pytest.fixture(scope='module')
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with numpy, yaml and OpenCV and nothing else: no ROS, no torch, no MuJoCo."""
    folder = tmp_path_factory.mktemp('bare')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(folder)], check=True)
    version = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    target = folder / 'lib' / version / 'site-packages'
    for module in (np, yaml, cv2):
        source = Path(str(module.__file__)).parent
        for path in (source, *source.parent.glob(f'{source.name}.libs')):
            (target / path.name).symlink_to(path)
    for path in Path(cv2.__file__).parents[1].glob('opencv*.libs'):
        (target / path.name).symlink_to(path)
    return folder / 'bin/python'


def test_the_doctor_speaks_without_ros_torch_and_simulator(bare_python: Path) -> None:
    hidden = ('LD_LIBRARY_PATH', '_ROS_WHEELS_BOOTSTRAP_COMPLETE', 'ROS_DISTRO')
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    result = subprocess.run(
        [str(bare_python), '-m', 'spear_ros.cli.main', 'doctor', '--json'],
        cwd=ROOT,
        env={**environment, 'PYTHONPATH': '', 'PYTHONDONTWRITEBYTECODE': '1'},
        capture_output=True,
        text=True,
    )
    assert result.stderr == ''
    assert result.returncode == 1  # ROS is essential
    report = json.loads(result.stdout)
    states = {row['name']: row['state'] for row in report['checks']}
    assert not report['ok']
    assert states['Python'] == 'ok'
    assert states['ROS 2'] == 'missing'
    assert states['torch'] == states['simulator'] == 'warn'
    assert all(row['mend'] for row in report['checks'] if row['state'] != 'ok')


def test_another_distro_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('rclpy')
    from spear_ros.cli import doctor_ros

    monkeypatch.setenv('ROS_DISTRO', 'humble')
    row = doctor_ros.check_ros()
    assert row.state == 'missing'
    assert 'humble' in row.detail


def test_a_profile_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from spear_ros.cli import doctor_ros

    monkeypatch.delenv('RMW_IMPLEMENTATION', raising=False)
    monkeypatch.setenv(doctor_ros.PROFILE_VARIABLE, '/nowhere/profile.xml')
    assert '/nowhere/profile.xml' in doctor_ros.check_profile().detail


@pytest.mark.ros
def test_rate_age_and_type_of_a_topic_are_seen_and_silence_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip('rclpy')
    pytest.importorskip('spear_msgs')
    monkeypatch.setenv('ROS_DOMAIN_ID', '71')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    import threading

    from sensor_msgs.msg import JointState

    from spear_ros.cli.doctor_ros import _topic_check
    from spear_ros.ros.probe import listening_node, observe

    stop = threading.Event()

    def publish() -> None:
        with listening_node('fake_driver') as (node, executor):
            publisher = node.create_publisher(JointState, '/fake/joints', 10)

            def send() -> None:
                message = JointState()
                message.header.stamp = node.get_clock().now().to_msg()
                publisher.publish(message)

            node.create_timer(0.02, send)
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        heard, silent = observe({'arm': '/fake/joints', 'wrist': '/fake/none'}, 3.0, 0.5)
    finally:
        stop.set()
        thread.join()
    assert heard.type_name == 'sensor_msgs/msg/JointState'
    assert heard.publishers == 1
    assert heard.count > 1
    assert heard.age_s is not None
    assert _topic_check('arm', heard, 60.0).state == 'ok'
    row = _topic_check('wrist', silent, 0.15)
    assert row.state == 'missing'
    assert '/fake/none' in row.detail


@pytest.mark.ros
def test_two_processes_hear_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('rclpy')
    monkeypatch.setenv('ROS_DOMAIN_ID', '71')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    from spear_ros.cli.doctor_ros import check_discovery

    assert check_discovery().state == 'ok'


def test_the_stamp_is_read_from_raw_bytes_in_both_byte_orders() -> None:
    pytest.importorskip('rclpy')
    import struct

    from spear_ros.ros.probe import stamp_of

    little = b'\x00\x01\x00\x00' + struct.pack('<iI', 12, 500_000_000)
    big = b'\x00\x00\x00\x00' + struct.pack('>iI', 12, 500_000_000)
    assert stamp_of(little) == stamp_of(big) == 12.5
    assert stamp_of(b'\x00\x01') is None
