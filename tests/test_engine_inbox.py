import threading
import time

import pytest

from medclipsam.engine.inbox import Inbox


def test_events_run_in_order_on_the_thread_that_drains():
    inbox, seen = Inbox(), []
    for n in range(3):
        inbox.begin()
        inbox.end(lambda n=n: seen.append((n, threading.current_thread())))
    assert inbox.moving == 0 and not seen
    inbox.drain(block=False)
    assert seen == [(n, threading.main_thread()) for n in range(3)]


def test_whatever_has_ended_before_it_is_counted_left_its_event():
    """The executor reads ``moving`` and drains then: it may stop only if nothing is lost."""
    for _ in range(200):
        inbox, seen = Inbox(), []
        inbox.begin()
        thread = threading.Thread(target=lambda i=inbox, s=seen: i.end(lambda: s.append(1)))
        thread.start()
        while inbox.moving:
            pass
        inbox.drain(block=False)
        assert seen == [1]
        thread.join()


def test_a_waiting_executor_is_woken_by_an_end_without_event():
    inbox = Inbox()
    inbox.begin()
    threading.Timer(0.05, inbox.end).start()
    start = time.monotonic()
    while inbox.moving:
        inbox.drain(block=True)
    assert time.monotonic() - start < 5


def test_errors_of_other_threads_are_raised():
    inbox = Inbox()
    inbox.fail(ZeroDivisionError("elsewhere"))
    with pytest.raises(ZeroDivisionError, match="elsewhere"):
        inbox.drain(block=False)
