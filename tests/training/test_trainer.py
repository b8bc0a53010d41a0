"""The loop with an engine that only notes what it is asked."""

from dataclasses import dataclass

import pytest

from training import trainer
from training.checkpoint import RunState
from training.trainer import Hook, Trainer


@dataclass
class Result:
    skipped: bool
    wants_stop: bool = False


class FakeEngine:
    def __init__(self, events, *, skips=(), fails_at=None, stops_at=None):
        self.events, self.skips, self.fails_at = events, skips, fails_at
        self.stops_at = stops_at
        self.step = 0

    def train_step(self, batches, learning_rate):
        self.step += 1
        if batches == self.fails_at:
            raise RuntimeError("the device is gone")
        self.events.append(("train", batches, learning_rate))
        return Result(self.step in self.skips, self.step == self.stops_at)


class Batches:
    """Batch n has the name n; each `next` lets 10 s pass, of which 3 are waited."""

    def __init__(self, clock, first=1):
        self.clock, self.number, self.wait_seconds = clock, first - 1, 0.0

    def __next__(self):
        self.number += 1
        self.clock.now += 10
        self.wait_seconds += 3
        return self.number


class Clock:
    now = 1000.0

    def perf_counter(self):
        return self.now


class Noting(Hook):
    def __init__(self, name, events, *, every=1, pauses=True, takes=0, clock=None):
        self.name, self.events = name, events
        self.every_n_steps, self.pauses_training = every, pauses
        self.takes, self.clock = takes, clock
        self.infos = []

    def on_start(self, state):
        self.events.append((f"{self.name} start", state.step))

    def on_step(self, info):
        self.infos.append(info)
        self.events.append((self.name, info.state.step))
        if self.clock:
            self.clock.now += self.takes

    def on_end(self):
        self.events.append((f"{self.name} end",))


def state_of(step, skipped_steps=0):
    return RunState(
        step=step,
        samples_seen=8 * step,
        skipped_steps=skipped_steps,
        world_size=1,
        zero_stage=1,
        data_order="f00d",
    )


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    return clock


@pytest.fixture
def fit(clock):
    def run(hooks, *, first=0, num_steps=3, engine=None):
        return Trainer(
            engine or FakeEngine([]),
            Batches(clock, first + 1),
            state=state_of(first),
            num_steps=num_steps,
            global_batch_size=8,
            learning_rate=lambda step: step / 10,
            hooks=hooks,
        ).fit()

    return run


def test_things_happen_in_order(fit):
    events = []
    hooks = [Noting("a", events), Noting("b", events)]
    assert fit(hooks, num_steps=2, engine=FakeEngine(events)) == state_of(2)
    assert events == [
        ("a start", 0),
        ("b start", 0),
        ("train", 1, 0.1),
        ("a", 1),
        ("b", 1),
        ("train", 2, 0.2),
        ("a", 2),
        ("b", 2),
        ("a end",),
        ("b end",),
    ]


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5]), (0, [5])]
)
def test_every_nth_step_and_the_last(fit, every, steps):
    hook = Noting("a", [], every=every)
    fit([hook], num_steps=5)
    assert [info.state.step for info in hook.infos] == steps
    assert [info.is_last for info in hook.infos] == [step == 5 for step in steps]


def test_a_resumed_run_goes_on_behind_its_state(fit):
    events = []
    hook = Noting("a", events, every=2)
    fit([hook], first=3, num_steps=5, engine=FakeEngine(events))
    assert events == [
        ("a start", 3),
        ("train", 4, 0.4),
        ("a", 4),
        ("train", 5, 0.5),
        ("a", 5),
        ("a end",),
    ]
    assert hook.infos[0].state == state_of(4)


def test_a_finished_run_takes_no_step(fit):
    events = []
    assert fit([Noting("a", events)], first=3, engine=FakeEngine(events)) == state_of(3)
    assert events == [("a start", 3), ("a end",)]


def test_a_run_that_is_told_to_stop_ends_behind_the_step(fit):
    class Last(Noting):
        def is_due(self, info):
            return super().is_due(info) or info.is_stopped

    events = []
    hooks = [Noting("a", events, every=2), Last("b", events, every=0)]
    assert fit(hooks, num_steps=9, engine=FakeEngine(events, stops_at=3)) == state_of(3)
    assert [event for event in events if event[0] in "ab"] == [("a", 2), ("b", 3)]
    assert events[-2:] == [("a end",), ("b end",)]
    (info,) = hooks[1].infos
    assert (info.is_stopped, info.is_last) == (True, False)


def test_a_wish_to_stop_at_the_last_step_is_fulfilled_anyway(fit):
    hook = Noting("a", [])
    assert fit([hook], num_steps=3, engine=FakeEngine([], stops_at=3)) == state_of(3)
    assert not hook.infos[-1].is_stopped


def test_hooks_are_told_before_each_step(fit):
    class Before(Hook):
        def before_step(self):
            events.append("before")

    events = []
    fit([Before()], num_steps=2, engine=FakeEngine(events))
    assert events == ["before", ("train", 1, 0.1), "before", ("train", 2, 0.2)]


def test_skipped_steps_are_counted(fit):
    hook = Noting("a", [])
    state = fit([hook], num_steps=4, engine=FakeEngine([], skips={2, 3}))
    assert state == state_of(4, skipped_steps=2)
    assert [info.state.skipped_steps for info in hook.infos] == [0, 1, 2, 2]


def test_pauses_are_no_training_time(fit, clock):
    pausing = Noting("a", [], every=2, takes=100, clock=clock)
    working = Noting("b", [], pauses=False, takes=1, clock=clock)
    fit([pausing, working], num_steps=3)
    # 10 s for each batch, and 1 s for the hook that is part of training.
    assert [info.seconds for info in working.infos] == [10, 21, 32]
    assert [info.data_wait_seconds for info in working.infos] == [3, 6, 9]
    assert [info.learning_rate for info in working.infos] == [0.1, 0.2, 0.3]


def test_hooks_end_behind_an_error(fit):
    events = []
    with pytest.raises(RuntimeError, match="the device is gone"):
        fit([Noting("a", events)], engine=FakeEngine(events, fails_at=2))
    assert events == [("a start", 0), ("train", 1, 0.1), ("a", 1), ("a end",)]


def test_hooks_end_behind_an_error_of_another(fit):
    class Failing(Hook):
        def on_step(self, info):
            raise OSError("no space")

    events = []
    with pytest.raises(OSError, match="no space"):
        fit([Failing(), Noting("b", events)])
    assert events == [("b start", 0), ("b end",)]
