"""What auto comes to, by given timings; and that a step is timed as it is, without a trace."""

import random

import numpy as np
import pytest
import torch
from tiny_run import TinyData, TinyTask, make_task

from attnlab.training import Steps, Way, automatic, resolve
from attnlab.training.automatic import (
    MOST_ROUNDS,
    choose_compilation,
    choose_precision,
    resolve_compilation,
    sum_of,
    time_in_turn,
)
from attnlab.training.machine import machine_of


def timings(seconds, compiling=None, failed=None):
    found = {"seconds": seconds, "compiling": compiling or {}, "failed": failed or {}}
    return {**found, "machine": "Some Processor", "threads": 2}


def never(ways):
    raise AssertionError(f"{ways} need no measurement")


@pytest.mark.parametrize("asked", ["32", "bf16"])
def test_what_is_asked_for_is_used(asked, monkeypatch):
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: True)
    found = resolve(asked, "cpu", never)
    assert (found.used, found.reason) == (asked, "asked for")


def test_bf16_without_instructions_is_used_and_said_to_be_slow(monkeypatch):
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: False)
    found = resolve("bf16", "cpu", never)
    assert found.used == "bf16"
    assert "slow: this CPU has no bf16 instructions; trainer.precision=auto takes what is faster" in found.reason
    assert (resolve("32", "cpu").reason, resolve("bf16", "cuda").reason) == ("asked for", "asked for")


def test_numbers_are_taken_for_their_names():
    assert resolve(32, "cpu").used == "32"  # YAML reads 32 as a number


def test_sixteen_needs_a_device_whose_loss_can_be_scaled():
    for device in ("cuda", "cpu"):
        assert resolve("16", device).used == "16"
    with pytest.raises(ValueError, match=r"trainer.precision=16: .* on this device, mps; accepted are auto, 32, bf16"):
        resolve("16", "mps")


def test_an_unknown_one_is_refused_with_the_accepted():
    with pytest.raises(ValueError, match=r"trainer.precision=fp8: accepted are auto, 32, bf16, 16"):
        resolve("fp8", "cpu")


@pytest.mark.parametrize(("hardware", "used"), [(True, "bf16"), (False, "32")])
def test_a_gpu_takes_bf16_where_it_computes_in_it(monkeypatch, hardware, used):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: hardware)
    assert resolve("auto", "cuda", never).used == used
    assert resolve("auto", "mps", never).used == "32"


def test_a_cpu_without_bf16_instructions_measures_nothing(monkeypatch):
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: False)
    found = resolve("auto", "cpu", never)
    assert (found.used, found.asked, found.reason) == ("32", "auto", "this CPU has no bf16 instructions")


@pytest.mark.parametrize(("bf16", "used"), [(0.041, "bf16"), (0.094, "bf16"), (0.096, "32"), (0.145, "32")])
def test_a_cpu_takes_the_format_that_was_faster_and_fp32_where_noise_would_decide(monkeypatch, bf16, used):
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: True)
    asked = []
    found = resolve("auto", "cpu", lambda ways: asked.append(ways) or timings({"32": 0.1, "bf16": bf16}))
    assert asked == [[Way("32"), Way("bf16")]]
    assert (found.used, found.asked) == (used, "auto")
    assert found.reason == f"a step in bf16 takes {bf16 / 0.1:.2f} of fp32's, measured on Some Processor, 2 threads"
    assert found.measured["seconds"] == {"32": 0.1, "bf16": bf16}


def test_without_a_measurement_a_cpu_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: True)
    assert resolve("auto", "cpu").used == "32"


def test_formats_are_compared_compiled_where_the_run_is(monkeypatch):
    monkeypatch.setattr(automatic, "cpu_has_bf16", lambda: True)
    found = resolve("auto", "cpu", lambda ways: timings({str(way): 1.0 for way in ways}), compiled=True)
    assert list(found.measured["seconds"]) == ["32 compiled", "bf16 compiled"]


def test_a_format_in_which_the_model_fails_is_out():
    used, _, reason = choose_precision(timings({"32": 1.0}, failed={"bf16": "not implemented for 'BFloat16'"}))
    assert (used, reason) == ("32", "this model takes no step in bf16 here: not implemented for 'BFloat16'")
    assert choose_precision(timings({"bf16": 1.0}, failed={"32": "out of memory"}))[0] == "bf16"
    assert choose_precision(timings({}, failed={"32": "no", "bf16": "no"}))[0] == "32"


@pytest.mark.parametrize(("steps", "used"), [(1000, False), (1390, False), (1410, True), (100_000, True)])
def test_a_model_is_compiled_where_all_of_its_steps_save_more_than_compiling_takes(steps, used):
    """21 s and 80 ms a step are 95% of 100 ms a step at 1,400 steps."""
    found = timings({"32": 0.1, "32 compiled": 0.08}, {"32 compiled": 21.0})
    chosen, asked, reason = choose_compilation(found, "32", steps)
    assert (chosen, asked) == (used, "auto")
    assert "a compiled step takes 0.80 of an eager one's, measured on Some Processor, 2 threads" in reason
    assert f"compiling takes 21 s, and {steps:,} steps {steps / 10:.0f} s" in reason


def test_a_model_that_is_slower_compiled_is_not_however_long_it_trains():
    found = timings({"bf16": 0.1, "bf16 compiled": 0.11}, {"bf16 compiled": 0.0})
    assert not choose_compilation(found, "bf16", 10**9)[0]
    failed = timings({"bf16": 0.1}, failed={"bf16 compiled": "no compiler found"})
    assert choose_compilation(failed, "bf16", 10)[::2] == (False, "this model is not compiled here: no compiler found")


def test_what_is_said_of_compiling_is_done():
    assert resolve_compilation(True, "32", 10, never).used is True
    assert resolve_compilation(False, "32", 10, never).used is False


def test_several_models_are_judged_by_the_sum_of_their_steps():
    small, large = timings({"32": 0.01, "bf16": 0.02}), timings({"32": 1.0, "bf16": 0.5}, failed={})
    both = sum_of([small, large])
    assert both["seconds"] == {"32": 1.01, "bf16": 0.52}
    assert choose_precision(both)[0] == "bf16"
    failing = sum_of([small, timings({"32": 1.0}, failed={"bf16": "no"})])
    assert (failing["seconds"], failing["failed"]) == ({"32": 1.01}, {"bf16": "no"})


class Clock:
    """A clock that a step sets on."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def step(self, name, *seconds):
        times = list(seconds)

        def take():
            self.calls.append(name)
            self.now += times.pop(0) if len(times) > 1 else times[0]

        return take


def test_steps_are_timed_in_turn_after_a_warm_up_and_the_median_counts():
    clock = Clock()
    steps = {"a": clock.step("a", 5.0, 1.0, 9.0, 1.0), "b": clock.step("b", 2.0, 0.5)}
    medians, first, failed = time_in_turn(steps, 16.6, clock)
    assert clock.calls == ["a", "b"] * 4  # rounds of 1.5, 9.5 and 1.5 seconds: a fourth would end after 16.7
    assert (medians, first, failed) == ({"a": 1.0, "b": 0.5}, {"a": 4.0, "b": 1.5}, {})


@pytest.mark.parametrize(("seconds", "rounds"), [(30.0, 1), (1e-4, MOST_ROUNDS), (1.0, 1), (0.5, 3)])
def test_a_long_step_is_taken_once_and_a_short_one_no_more_often_than_tells(seconds, rounds):
    clock = Clock()
    time_in_turn({"a": clock.step("a", seconds), "b": clock.step("b", seconds)}, 3.0, clock)
    assert clock.calls == ["a", "b"] * (1 + rounds)


def test_a_step_that_fails_is_told_and_the_others_are_timed():
    clock = Clock()

    def fails():
        raise RuntimeError("first line\nsecond line")

    medians, _, failed = time_in_turn({"a": fails, "b": clock.step("b", 1.0)}, 3.0, clock)
    assert failed == {"a": "first line"}
    assert medians == {"b": 1.0}
    assert time_in_turn({"a": fails}, 3.0, clock) == ({}, {}, {"a": "first line"})


class Noting(TinyTask):
    """Keeps the type of a hidden layer's output at each loss, and the weights before it."""

    def __init__(self, model):
        super().__init__(model)
        self.types, self.weights = [], []
        model.layers[0].register_forward_hook(lambda module, inputs, output: self.types.append(output.dtype))

    def loss_sums(self, batch):
        self.weights.append(self.model.output.weight.detach().clone())
        return super().loss_sums(batch)


def steps(made, **more):
    batch = next(iter(TinyData().train_dataloader()))
    return Steps(lambda: made.append(make_task(kind=Noting)) or made[-1], batch, "cpu", **more)


def test_what_is_timed_are_updates_of_one_model_in_both_formats():
    made = []
    found = steps(made, threads=1, clip=1.0).timed([Way("32"), Way("bf16")], budget=0.0)
    (task,) = made
    assert task.types == [torch.float32, torch.bfloat16] * 2
    assert all(
        not torch.equal(one, next_one) for one, next_one in zip(task.weights[1:], task.weights[2:], strict=False)
    )
    assert set(found["seconds"]) == {"32", "bf16"}
    assert all(0 < seconds < 60 for seconds in found["seconds"].values())
    assert (found["machine"], found["threads"], found["failed"]) == (machine_of("cpu")[0], 1, {})


def test_timing_leaves_random_numbers_and_threads_as_they_were():
    threads = torch.get_num_threads()
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    steps([], threads=threads + 1).timed([Way("32"), Way("bf16")], budget=0.0)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


def test_a_compiled_way_has_a_model_of_its_own(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    made = []
    found = steps(made).timed([Way("32"), Way("32", compiled=True)], budget=0.0)
    assert [task.model for task in made[1:]] == compiled
    assert list(found["seconds"]) == ["32", "32 compiled"]
    assert list(found["compiling"]) == ["32 compiled"]
