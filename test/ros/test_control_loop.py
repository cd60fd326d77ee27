"""Control thread: commands are sent as ticked, an error ends the sending and is kept."""

import threading

from spear_ros.ros.control_loop import ControlLoop, raise_priority


class Ticker:
    def __init__(self, script):
        self.script = list(script)
        self.count = 0

    def tick(self):
        self.count += 1
        item = self.script.pop(0) if self.script else None
        if isinstance(item, Exception):
            raise item
        return item


def run(ticker, until):
    sent, seen = [], threading.Event()

    def after():
        if until(ticker, sent):
            seen.set()

    loop = ControlLoop(ticker, sent.append, 500.0, after)
    loop.start()
    assert seen.wait(10.0)
    loop.stop()
    return loop, sent


def test_commands_are_sent_and_nothing_is_sent_for_none():
    loop, sent = run(Ticker(['a', None, 'b']), lambda ticker, sent: ticker.count >= 5)
    assert sent == ['a', 'b']
    assert loop.failure == ''
    assert loop.priority


def test_error_ends_the_sending_and_keeps_its_traceback():
    ticker = Ticker(['a', ValueError('broken'), 'never'])
    loop, sent = run(ticker, lambda ticker, sent: ticker.count >= 2)
    assert sent == ['a']
    assert 'broken' in loop.failure
    assert ticker.script == ['never']


def test_stop_ends_the_ticking():
    ticker = Ticker([])
    run(ticker, lambda ticker, sent: ticker.count >= 3)
    count = ticker.count
    threading.Event().wait(0.05)
    assert ticker.count == count


def test_refused_priority_is_said_with_its_mend():
    granted = []
    thread = threading.Thread(target=lambda: granted.append(raise_priority(20)))
    thread.start()  # a thread of its own: the tests stay ordinary
    thread.join()
    ((realtime, text),) = granted
    assert realtime == text.startswith('SCHED_RR')
    assert realtime or 'limits.conf' in text
