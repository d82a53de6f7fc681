"""The hand-over between threads: nothing is lost, and nobody waits for ever."""

import itertools
import random
import sys
import threading
import time
from collections import deque
from threading import Event

import pytest
import torch

from medclipsam.engine.run.device.executor import Executor
from medclipsam.engine.run.device.flights import Flights
from medclipsam.engine.run.hop import Hop
from medclipsam.engine.run.inbox import POLL, Inbox
from medclipsam.engine.run.meter import Meter

BOUND = 60  # seconds in which what ends at once must have ended, on the busiest machine


def test_messages_run_in_order_on_the_thread_that_drains():
    inbox, seen = Inbox(), []
    for n in range(3):
        inbox.begin()
        inbox.end(lambda n=n: seen.append((n, threading.current_thread())))
    assert inbox.look() == (False, 0) and not seen
    inbox.drain(block=False)
    assert seen == [(n, threading.main_thread()) for n in range(3)]


def test_an_error_of_another_thread_comes_first_and_stays():
    inbox, seen = Inbox(), []
    inbox.begin()
    inbox.end(lambda: seen.append(1))
    inbox.fail(ZeroDivisionError("the first"))
    inbox.fail(KeyError("a consequence"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="the first"):
            inbox.drain(block=False)
    assert not seen


def test_waiting_ends_with_the_first_wish_to_stop():
    """As a signal handler does it: no lock is taken, nobody is notified."""
    stop = Event()
    inbox = Inbox(stop)
    inbox.begin()
    inbox.look()
    threading.Timer(3 * POLL, stop.set).start()
    assert inbox.drain(block=True) is False


def test_waiting_ends_after_its_time():
    inbox = Inbox()
    inbox.look()
    assert inbox.drain(block=True, timeout=0.05) is False


class Hung(AssertionError):
    """The executor would wait although nothing will ever wake it."""


class Scripted(Inbox):
    """Other threads' calls come when the script says; waiting for what never comes is an error.

    Args:
        calls: what other threads do, in order.
        gaps: how many of them happen before each call of the executor; the rest while it waits.
    """

    def __init__(self, calls, gaps):
        super().__init__()
        self.calls, self.gaps = deque(calls), deque(gaps)
        self.waits = 0

    def _others(self):
        for _ in range(self.gaps.popleft() if self.gaps else 0):
            self._next_call()

    def _next_call(self):
        if self.calls:
            self.calls.popleft()(self)

    def look(self):
        self._others()
        return super().look()

    def drain(self, block, timeout=None):
        self._others()
        return super().drain(block, timeout)

    def _wait(self, timeout):
        self.waits += 1
        while self._changes == self._seen:
            if not self.calls:
                raise Hung(f"closed={self.closed} moving={self.moving}")
            self._next_call()
        return True


class Counting(Executor):
    """An executor whose only work is to count what arrives."""

    def __init__(self, inbox, meter=None):
        self.inbox, self.meter = inbox, meter or Meter()
        self._loaded, self._fitting, self._refining = deque(), 0, 0
        self._flights = Flights(torch.device("cpu"), self.meter, lambda stage: None)
        self.waiting, self.done = deque(), []

    def _lower_memory(self, stage):
        return ""

    def _next_step(self, moving, room):
        return self._step if self.waiting and not moving else None

    def _step(self):
        self.done.append(self.waiting.popleft())

    @property
    def _queued(self):
        return bool(self.waiting)

    def _fit(self, work, index):
        raise AssertionError("nothing was loaded")

    def _segment_alone(self, frame):
        return {}


def interleavings(*programs):
    """Every order of the calls of several threads that keeps each thread's own order."""
    names = [n for n, program in enumerate(programs) for _ in program]
    for order in sorted(set(itertools.permutations(names))):
        at = [iter(program) for program in programs]
        yield [next(at[n]) for n in order]


def end(message=None):
    return lambda inbox: inbox.end(message and (lambda: message(inbox)))


def test_every_interleaving_ends_and_loses_nothing():
    """Two items, of which one says something, and the lister; each order of their calls, at
    each place between the calls of the executor."""
    tried = 0
    for order in interleavings(
        [lambda i: i.begin(), end(lambda i: i.executor.waiting.append("a"))],
        [lambda i: i.begin(), end()],
        [lambda i: i.close(), lambda i: i.end()],
    ):
        closes = [n for n, call in enumerate(order) if call.__code__.co_names[:1] == ("close",)]
        begins = [n for n, call in enumerate(order) if call.__code__.co_names[:1] == ("begin",)]
        if max(begins) > min(closes):
            continue  # whoever lists begins before it closes
        for gaps in itertools.product(range(4), repeat=4):
            inbox = Scripted(order, gaps)
            inbox.begin()  # the lister
            inbox.executor = Counting(inbox)
            inbox.executor.run(Event())
            assert inbox.executor.done == ["a"] and not inbox.calls
            tried += 1
    assert tried > 1000


def test_a_wake_up_between_counting_and_draining_is_not_lost():
    """The order of calls in which a run waited for ever after its last item."""
    for gaps in itertools.product((0, 1), repeat=5):
        inbox = Scripted([end()], gaps)
        inbox.begin()
        inbox.close()
        Counting(inbox).run(Event())


@pytest.fixture
def switching():
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def small_run(seed):
    """A lister, two stages on threads and an executor; some tasks raise, some lead to others."""
    chance, meter = random.Random(seed), Meter()
    inbox = Inbox(Event())
    first = Hop("read_image", 1 + seed % 3, inbox, meter)
    second = Hop("refine_mask", 1 + seed % 2, inbox, meter)
    executor = Counting(inbox, meter)
    count, fails = chance.randrange(6), chance.random() < 0.2
    culprit = chance.randrange(6)

    def pause():
        if chance.random() < 0.3:
            time.sleep(chance.random() * 2e-4)

    def refine(n):
        pause()
        return lambda: executor.waiting.append(n)

    def read(n):
        pause()
        if fails and n == culprit:
            raise ZeroDivisionError(n)
        return lambda: second.send(lambda: refine(n))

    def lister():
        for n in range(count):
            pause()
            first.send(lambda n=n: read(n))
        inbox.close()
        pause()
        inbox.end()

    inbox.begin()
    threading.Thread(target=lister, daemon=True).start()
    try:
        executor.run(Event())
        assert not (fails and culprit < count), "an error was lost"
        assert sorted(executor.done) == list(range(count))
    except ZeroDivisionError:
        assert fails
    finally:
        first.close(drop=True)
        second.close(drop=True)


def test_thousands_of_small_runs_end(switching):
    """Real threads, schedules by chance: each run ends with all items, or with its error."""
    left = []

    def drive():
        try:
            for seed in range(3000):
                left.append(seed)
                small_run(seed)
            left.append("end")
        except BaseException as exc:
            left.append(exc)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    before = -1
    while thread.is_alive() and len(left) > before:  # as long as it comes on, it is not hung
        before = len(left)
        thread.join(BOUND)
    assert left[-1] == "end"


def test_a_task_ends_once_whatever_happens_in_it():
    inbox, meter = Inbox(), Meter()
    hop = Hop("read_image", 2, inbox, meter)

    def leave():
        raise SystemExit

    for task in (lambda: None, lambda: 1 / 0, leave, lambda: lambda: None):
        hop.send(task)
    hop.close()
    assert inbox.look() == (False, 0)
    with pytest.raises((ZeroDivisionError, SystemExit)):
        inbox.drain(block=False)


def test_closing_waits_for_what_was_sent_unless_it_is_dropped():
    inbox, meter, seen = Inbox(), Meter(), []
    hop = Hop("write_mask", 1, inbox, meter, brings=False)
    for n in range(20):
        hop.send(lambda n=n: seen.append(n))
    hop.close()
    assert seen == list(range(20)) and inbox.look() == (False, 0)
    go = Event()
    hop = Hop("write_mask", 1, inbox, meter, brings=False)
    hop.send(lambda: go.wait(BOUND) and None)
    for n in range(20):
        hop.send(lambda n=n: seen.append(n))
    start = time.monotonic()
    hop.close(drop=True, patience=0.05)  # the one that hangs is not waited for
    assert time.monotonic() - start < BOUND
    go.set()
    assert len(seen) == 20
