"""Recorder: bags that any reader opens, a bounded last minute, a disk that is full or gone."""

import json
import shutil
import struct
from types import SimpleNamespace

import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from rosbags.highlevel import AnyReader

from spear_ros.core.errors import UserError
from spear_ros.data.bag_writer import BagWriter
from spear_ros.ros.recording import (
    Entry,
    FlightBuffer,
    Picture,
    Recorder,
    RecorderSettings,
    Throttle,
)

STRING = 'std_msgs/msg/String'


def cdr_string(text):
    data = text.encode() + b'\0'
    return b'\x00\x01\x00\x00' + struct.pack('<I', len(data)) + data


def entry(i, topic='/chatter', size=4):
    return Entry(topic, STRING, i * 100_000_000, cdr_string('x' * size))


def read(folder):
    with AnyReader([folder]) as reader:
        return [
            (c.topic, stamp, reader.deserialize(data, c.msgtype).data)
            for c, stamp, data in reader.messages()
        ]


def settings(tmp_path, **changes):
    values = {'record': tmp_path / 'bag', 'flight': tmp_path / 'flight', 'min_free_bytes': 1}
    return RecorderSettings(**{**values, **changes})


def finish(recorder, items, fault=None):
    recorder.start()
    for item in items:
        recorder.put(item)
    if fault:
        recorder.trigger(fault, {'text': 'why'})
    recorder.close()


def test_bag_can_be_read_back(tmp_path):
    with BagWriter(tmp_path / 'bag', {'robot': 'panda'}) as bag:
        bag.write('/chatter', STRING, 5, cdr_string('hello'))
        bag.write('/chatter', STRING, 6, cdr_string('world'))
    assert read(tmp_path / 'bag') == [('/chatter', 5, 'hello'), ('/chatter', 6, 'world')]
    assert 'panda' in (tmp_path / 'bag' / 'metadata.yaml').read_text()


def test_existing_folder_and_unknown_type_are_refused(tmp_path):
    with pytest.raises(UserError, match='exists already'):
        BagWriter(tmp_path)
    with BagWriter(tmp_path / 'bag') as bag, pytest.raises(UserError, match=r'no_msgs/msg/X\.msg'):
        bag.write('/x', 'no_msgs/msg/X', 0, b'')


def test_ring_is_bounded_in_time_and_in_bytes():
    ring = FlightBuffer(window_s=1.0, max_bytes=10_000)
    for i in range(30):
        ring.add(entry(i))
    recent = [e for e in ring.entries() if e.topic == '/chatter']
    assert [e.stamp_ns for e in recent] == [i * 10**8 for i in range(19, 30)]
    small = FlightBuffer(window_s=100.0, max_bytes=200)
    for i in range(30):
        small.add(entry(i, size=40))
    assert small.bytes <= 200


def test_last_word_of_a_silent_topic_stays():
    ring = FlightBuffer(window_s=1.0, max_bytes=10_000)
    ring.add(entry(0, '/activity'))
    for i in range(50):
        ring.add(entry(i))
    assert ring.entries()[0].topic == '/activity'


def test_throttle_lets_five_of_fifteen_through():
    throttle = Throttle(5.0)
    assert sum(throttle.due('/a', round(i * 1e9 / 15)) for i in range(30)) == 10
    assert throttle.due('/b', 0)


def test_run_and_fault_are_written(tmp_path):
    recorder = Recorder(settings(tmp_path), {'robot': 'panda', 'versions': {'python': '3'}})
    finish(recorder, [entry(i) for i in range(10)], fault='JOINTS_STALE')
    assert len(read(tmp_path / 'bag')) == 10
    (flight,) = (tmp_path / 'flight').iterdir()
    assert flight.name.endswith('_JOINTS_STALE')
    assert len(read(flight)) == 10
    facts = json.loads((flight / 'flight.json').read_text())
    assert (facts['reason'], facts['text'], facts['robot']) == ('JOINTS_STALE', 'why', 'panda')
    assert recorder.problems == {}


def test_pictures_are_full_in_the_run_and_small_and_few_in_the_flight(tmp_path):
    asked = []

    def encode(small):
        asked.append(small)
        return cdr_string('small' if small else 'full')

    pictures = [Picture('/image', STRING, round(i * 1e9 / 15), encode) for i in range(15)]
    finish(Recorder(settings(tmp_path), {}), pictures, fault='STOP_SERVICE')
    assert [text for *_, text in read(tmp_path / 'bag')] == ['full'] * 15
    (flight,) = (tmp_path / 'flight').iterdir()
    assert [text for *_, text in read(flight)] == ['small'] * 5


def test_picture_that_cannot_be_encoded_is_left_out(tmp_path):
    items = [Picture('/image', STRING, 0, lambda small: None), entry(1)]
    finish(Recorder(settings(tmp_path), {}), items)
    assert [topic for topic, *_ in read(tmp_path / 'bag')] == ['/chatter']


def test_second_run_gets_its_own_folder(tmp_path):
    for _ in range(2):
        finish(Recorder(settings(tmp_path, flight=None), {}), [entry(0)])
    assert len([p for p in tmp_path.iterdir() if p.name.startswith('bag')]) == 2


def test_flight_stays_under_its_limit(tmp_path):
    limit = 300_000
    recorder = Recorder(settings(tmp_path, record=None, max_flight_bytes=limit), {})
    finish(recorder, [entry(i, size=3000) for i in range(300)], fault='REFLEX')
    (flight,) = (tmp_path / 'flight').iterdir()
    size = sum(p.stat().st_size for p in flight.iterdir())
    assert 0.8 * limit < size <= limit


def test_old_flights_are_deleted(tmp_path):
    for i in range(5):
        recorder = Recorder(settings(tmp_path, record=None, keep_flights=3), {})
        finish(recorder, [entry(i)], fault=f'R{i}')
    names = sorted(p.name for p in (tmp_path / 'flight').iterdir())
    assert [name[-2:] for name in names] == ['R2', 'R3', 'R4']


def test_full_disk_stops_recording_with_a_sentence(tmp_path):
    recorder = Recorder(settings(tmp_path, min_free_bytes=10**18), {})
    finish(recorder, [entry(0)], fault='REFLEX')
    assert 'make room' in recorder.problems['record']
    assert 'make room' in recorder.problems['flight']
    assert not (tmp_path / 'bag').exists()


def test_disk_that_fills_while_recording_ends_the_bag_and_later_begins_another(
    tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=0.0)
    free = SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: free)
    changed = settings(tmp_path, flight=None, min_free_bytes=10**6)
    recorder = Recorder(changed, {}, lambda: clock.now)
    recorder._take(entry(0))
    free.free, clock.now = 0, 2.0
    recorder._take(entry(1))
    assert 'make room' in recorder.problems['record']
    free.free, clock.now = 10**9, 13.0
    recorder._take(entry(2))
    assert recorder.problems == {}
    recorder._close_bag()
    assert [len(read(folder)) for folder in recorder.written] == [1, 1]


def test_write_error_is_told_and_nothing_raises(tmp_path):
    def no_space(*args):
        raise OSError(28, 'No space left on device')

    recorder = Recorder(settings(tmp_path, flight=None), {})
    recorder._take(entry(0))
    recorder._bag.write = no_space
    recorder._take(entry(1))
    assert 'No space left on device' in recorder.problems['record']
    recorder._take(entry(2))


def test_slow_disk_drops_and_counts(tmp_path):
    recorder = Recorder(settings(tmp_path), {})
    for i in range(700):  # the thread does not run
        recorder.put(entry(i))
    assert recorder.dropped == 100
    assert '100 messages' in recorder.problems['queue']
