import threading
import time
from threading import Event

from hypothesis import given
from hypothesis import strategies as st

from medclipsam.engine.run.budget import Budget

BOUND = 240  # seconds; only what hangs reaches them


def take_on_a_thread(budget, amount):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(budget.take(amount)), daemon=True)
    thread.start()
    return thread, answers


def test_what_does_not_fit_waits_until_enough_is_given_back():
    budget = Budget(100, Event())
    assert budget.take(60) and budget.take(40)
    thread, answers = take_on_a_thread(budget, 30)
    thread.join(0.05)
    assert thread.is_alive() and budget.used == 100
    budget.give(40)
    thread.join(BOUND)
    assert answers == [True] and budget.used == 90


def test_more_than_the_limit_is_let_in_alone():
    budget = Budget(100, Event())
    assert budget.take(1000)
    thread, answers = take_on_a_thread(budget, 1)
    thread.join(0.05)
    assert thread.is_alive()
    budget.give(1000)
    thread.join(BOUND)
    assert answers == [True]


def test_an_item_that_turns_out_larger_keeps_others_out():
    budget = Budget(100, Event())
    budget.take(10)
    budget.correct(10, 250)
    thread, _ = take_on_a_thread(budget, 1)
    thread.join(0.05)
    assert thread.is_alive() and budget.used == 250
    budget.correct(250, 99)
    thread.join(BOUND)
    assert not thread.is_alive() and budget.used == 100


def test_stopping_wakes_those_who_wait():
    stop = Event()
    budget = Budget(10, stop)
    budget.take(10)
    waits = []
    answers = []
    thread = threading.Thread(target=lambda: answers.append(budget.take(5, waits.append)))
    thread.start()
    time.sleep(0.05)
    stop.set()
    thread.join(BOUND)
    assert answers == [False] and waits == [True, False] and budget.used == 10
    assert not budget.take(0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 100))
def test_many_threads_never_exceed_the_limit_and_all_get_through(amounts, limit):
    budget = Budget(limit, Event())
    left = iter(amounts)
    lock, taken = threading.Lock(), []

    def worker():
        while True:
            with lock:
                amount = next(left, None)
            if amount is None:
                return
            assert budget.take(amount)
            taken.append(budget.used)  # may be less by now, never more than was let in
            budget.give(amount)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert not any(thread.is_alive() for thread in threads)
    assert budget.used == 0 and max(taken) <= max(limit, *amounts)
