"""Stop-watches: enough runs, honest percentiles; the state of a card as nvidia-smi tells it."""

import pytest
import torch

from spear_ros.inference import hardware
from spear_ros.inference.timing import (
    Budget,
    DeviceWatch,
    capture,
    time_device,
    time_host,
    timing_of,
)

CPU = torch.device('cpu')
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def test_a_timing_tells_median_tail_and_ends():
    timing = timing_of([float(v) for v in range(1, 102)])
    assert (timing.runs, timing.p50, timing.least, timing.greatest) == (101, 51.0, 1.0, 101.0)
    assert timing.p99 == pytest.approx(100.0)
    assert set(timing.as_dict()) == {'runs', 'p50', 'p99', 'least', 'greatest'}


@pytest.mark.parametrize('timer', [time_host, lambda f, b: time_device(f, b, CPU)])
def test_a_slow_function_still_runs_the_least_number_of_times(timer):
    calls = []
    timing = timer(lambda: calls.append(1), Budget(seconds=0.0, least=4, warm_up=2))
    assert timing.runs == 4
    assert len(calls) == 6  # warm-up runs are not counted


def test_a_fast_function_stops_at_the_largest_number_of_runs():
    calls = []
    timing = time_host(lambda: calls.append(1), Budget(seconds=3600.0, most=7, warm_up=0))
    assert timing.runs == len(calls) == 7


def test_a_cpu_has_no_graphs_and_says_so():
    calls = []
    function, note = capture(lambda: calls.append(1), CPU)
    assert calls == []
    function()
    assert calls == [1]
    assert 'CPU' in note


class FakeDevice:
    """A host's clock and a device that works off its queue, in milliseconds."""

    def __init__(self):
        self.host, self.free_at = 0.0, 0.0

    def work(self, milliseconds):
        self.free_at = max(self.free_at, self.host) + milliseconds

    sleep = work

    def launch(self, host, device):
        self.host += host
        self.work(device)

    def event(self):
        return FakeEvent(self, max(self.free_at, self.host))


class FakeEvent:
    def __init__(self, device, at):
        self.device, self.at = device, at

    def query(self):
        return self.device.host >= self.at

    def synchronize(self):
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.mark.parametrize('host', [0.01, 0.2, 3.0, 40.0])
def test_the_time_of_a_launch_on_the_host_is_none_of_the_devices(host):
    device = FakeDevice()
    held, bare = (DeviceWatch(device, hold=h) for h in (True, False))
    for _ in range(3):
        assert held.time(lambda: device.launch(host, 4.0)) == pytest.approx(4.0)
    assert bare.time(lambda: device.launch(host, 4.0)) == pytest.approx(4.0 + host)


def test_gaps_between_the_launches_of_eager_code_count():
    device = FakeDevice()
    watch = DeviceWatch(device, hold=False)
    assert watch.time(lambda: [device.launch(0.5, 0.1) for _ in range(10)]) == pytest.approx(5.1)


def test_a_function_that_waits_by_itself_is_still_timed():
    device = FakeDevice()

    def waits():
        device.launch(0.1, 2.0)
        device.host = max(device.host, device.free_at)

    assert DeviceWatch(device, hold=True).time(waits) == pytest.approx(2.0)


@pytest.mark.gpu
@needs_cuda
def test_a_captured_function_writes_the_same_memory_again():
    x, y = torch.ones(4, device='cuda'), torch.zeros(4, device='cuda')
    replay, note = capture(lambda: y.copy_(x * 2), torch.device('cuda'))
    assert note == ''
    x.fill_(3.0)
    replay()
    assert torch.equal(y.cpu(), torch.full((4,), 6.0))
    assert time_device(replay, Budget(seconds=0.01), torch.device('cuda')).p50 > 0


@pytest.mark.gpu
@needs_cuda
def test_a_capture_that_fails_says_why_and_spoils_no_other():
    device, x = torch.device('cuda'), torch.ones(4, device='cuda')
    function, note = capture(lambda: x.sum().item(), device)
    assert note.startswith('not captured: ')
    function()
    torch.cuda.empty_cache()
    replay, note = capture(lambda: x.mul_(2), device)
    assert note == ''
    replay()


def test_a_line_of_nvidia_smi_becomes_numbers():
    state = hardware.parse_state('580.159.04, 1980, 1980, 2619, 34, 121.53, 700.00')
    assert state['driver'] == '580.159.04'
    assert state['sm_clock_mhz'] == 1980.0
    assert state['power_w'] == 121.53


def test_what_nvidia_smi_does_not_know_is_left_out():
    state = hardware.parse_state('580.1, [N/A], 1980, [Not Supported], , 1.0, 2.0')
    assert 'sm_clock_mhz' not in state
    assert 'memory_clock_mhz' not in state
    assert 'temperature_c' not in state
    assert state['sm_clock_max_mhz'] == 1980.0


def test_a_cpu_has_no_state_of_a_card_but_a_description():
    assert hardware.gpu_state(CPU) == {}
    found = hardware.describe(CPU)
    assert found['versions']['torch'] == torch.__version__
    assert found['processor']
    assert 'gpu' not in found
    assert hardware.peak_memory_mb(CPU)['host_mb'] > 50


def test_the_commit_of_no_clone_is_empty(tmp_path):
    assert hardware.commit_of(tmp_path) == ''


def test_the_measured_card_is_a_row_of_the_roofline():
    budget = Budget(seconds=0.0, least=1, warm_up=0)
    card, figures = hardware.measure_card(CPU, torch.float32, (8, 16, 8), budget)
    assert card.tflop_s > 0
    assert card.gb_s > 0
    assert 'float32' in card.source
    assert figures['model_gemm_tflop_s'] > 0
