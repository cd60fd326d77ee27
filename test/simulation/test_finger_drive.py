import pytest

from spear_ros.simulation.finger_drive import FingerDrive

DT = 0.002


class Fingers:
    """A finger of 0.18 kg with an object of a given half width between, or none."""

    def __init__(self, start, stop_at=0.0):
        self.x, self.v, self.stop_at, self.force = start, 0.0, stop_at, 0.0

    def run(self, drive, seconds):
        for _ in range(round(seconds / DT)):
            self.force = drive.force(self.x, self.v, DT)
            self.v = (self.v + DT * self.force / 0.18) / (1 + DT * 60 / 0.18)
            self.x = min(max(self.x + DT * self.v, self.stop_at), 0.04)
            if self.x == self.stop_at:
                self.v = max(self.v, 0.0)
        return self


def test_move_arrives_at_its_speed_and_reports_success():
    drive = FingerDrive(0.04, 0.04)
    fingers = Fingers(0.04)
    drive.move(0.01, 0.05)
    fingers.run(drive, 0.4)
    assert drive.result is None
    assert fingers.x == pytest.approx(0.02, abs=2e-3)
    fingers.run(drive, 0.5)
    assert drive.result.success
    assert drive.result.width_m == pytest.approx(0.02, abs=1e-3)


def test_a_grasp_stops_on_the_object_and_keeps_pressing_with_the_force_asked_for():
    drive, fingers = FingerDrive(0.04, 0.04), Fingers(0.04, stop_at=0.015)
    drive.grasp(0.03, 0.05, 25.0, 0.005, 0.005)
    fingers.run(drive, 1.5)
    assert drive.result.success
    assert drive.result.stalled
    assert fingers.force == pytest.approx(-25.0)


def test_fingers_that_held_an_object_open_at_once_and_do_not_seem_stalled():
    drive, fingers = FingerDrive(0.04, 0.04), Fingers(0.04, stop_at=0.0205)
    drive.grasp(0.041, 0.05, 30.0, 0.005, 0.005)
    fingers.run(drive, 1.5)
    assert drive.result.stalled
    drive.move(0.04, 0.05)
    fingers.run(drive, 0.1)
    assert drive.result is None
    assert fingers.x > 0.022
    fingers.run(drive, 0.9)
    assert drive.result.success


def test_a_grasp_that_is_asked_for_again_does_not_let_go():
    drive, fingers = FingerDrive(0.04, 0.04), Fingers(0.04, stop_at=0.0205)
    for _ in range(2):
        drive.grasp(0.041, 0.05, 30.0, 0.005, 0.005)
        for _ in range(40):
            fingers.run(drive, 0.025)
            if fingers.x < 0.0206:
                assert fingers.force < -20.0 or drive.finger_m > 0.015
    assert drive.result.success


@pytest.mark.parametrize(('width', 'success'), [(0.03, True), (0.05, False), (0.01, False)])
def test_a_grasp_succeeds_only_within_its_tolerances(width, success):
    drive, fingers = FingerDrive(0.04, 0.04), Fingers(0.04, stop_at=0.015)
    drive.grasp(width, 0.05, 25.0, 0.005, 0.005)
    fingers.run(drive, 1.5)
    assert drive.result.success == success


def test_an_empty_grasp_with_tight_tolerances_fails():
    drive, fingers = FingerDrive(0.04, 0.04), Fingers(0.04)
    drive.grasp(0.03, 0.1, 25.0, 0.005, 0.005)
    fingers.run(drive, 1.0)
    assert not drive.result.success
    assert drive.result.error == 'grasp failed'


def test_a_move_into_an_object_reports_a_stall():
    drive, fingers = FingerDrive(0.04, 0.04), Fingers(0.04, stop_at=0.015)
    drive.move(0.0, 0.05)
    fingers.run(drive, 1.5)
    assert not drive.result.success
    assert drive.result.stalled


def test_stop_holds_where_the_finger_is():
    drive, fingers = FingerDrive(0.04, 0.04), Fingers(0.04)
    drive.move(0.0, 0.05)
    fingers.run(drive, 0.3)
    drive.stop(fingers.x)
    here = fingers.x
    fingers.run(drive, 0.5)
    assert fingers.x == pytest.approx(here, abs=1e-3)
    assert drive.result.error == 'stopped'


def test_pwm_pushes_in_its_direction_and_zero_lets_go():
    drive = FingerDrive(0.02, 0.04)
    drive.drive_pwm(-350)
    assert drive.force(0.02, 0.0, DT) < -10
    drive.drive_pwm(250)
    assert 5 < drive.force(0.02, 0.0, DT) < 16
    drive.drive_pwm(0)
    assert drive.force(0.02, 0.0, DT) == 0
