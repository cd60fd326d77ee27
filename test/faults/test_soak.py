"""A minute of the soak: random faults in quick succession, no unsafe command."""

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.slow]


@pytest.mark.parametrize('robot', ['franka', 'widowx'])
def test_half_a_minute_of_random_faults_is_safe(benches, robot):
    import soak

    result = soak.run(benches.get(robot), seconds=30.0, every_s=3.0, seed=1)
    assert result['unsafe'] == []
    assert result['commands_judged'] > 100
    assert result['as_expected'] >= 3
