from spear_ros.runtime.effort_guard import EffortGuard


def test_effort_guard_ignores_a_spike_and_trips_on_a_push():
    guard = EffortGuard((1000.0, 1000.0), time_s=0.1)
    guard.update(('a', 'b'), [0.0, -1500.0], 0.00)
    guard.update(('a', 'b'), [0.0, 900.0], 0.05)
    guard.update(('a', 'b'), [0.0, -1500.0], 0.08)
    assert guard.tripped == ''
    guard.update(('a', 'b'), [0.0, -1500.0], 0.19)
    assert 'joint b' in guard.tripped
