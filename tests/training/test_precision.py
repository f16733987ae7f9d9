"""The precision is asked for, or chosen by a rule that says why."""

import pytest

from attnlab.training import precision, resolve


@pytest.mark.parametrize(("asked", "lightning"), [("32", "32-true"), ("bf16", "bf16-mixed")])
def test_what_is_asked_for_is_used(asked, lightning):
    found = resolve(asked, "cpu", 64)
    assert (found.used, found.lightning, found.reason) == (asked, lightning, "asked for")


def test_numbers_are_taken_for_their_names():
    assert resolve(32, "cpu", 64).used == "32"  # YAML reads 32 as a number


def test_sixteen_needs_a_device_whose_loss_can_be_scaled():
    for device in ("cuda", "cpu"):
        assert resolve("16", device, 64).lightning == "16-mixed"
    with pytest.raises(ValueError, match=r"trainer.precision=16: .* on this device, mps; accepted are auto, 32, bf16"):
        resolve("16", "mps", 64)


def test_an_unknown_one_is_refused_with_the_accepted():
    with pytest.raises(ValueError, match=r"trainer.precision=fp8: accepted are auto, 32, bf16, 16"):
        resolve("fp8", "cpu", 64)


@pytest.mark.parametrize(
    ("hardware", "d_model", "used", "reason"),
    [(False, 4096, "32", "no bf16"), (True, 255, "32", "from d_model=256"), (True, 256, "bf16", "wide enough")],
)
def test_a_cpu_takes_bf16_only_where_it_is_faster(monkeypatch, hardware, d_model, used, reason):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: hardware)
    found = resolve("auto", "cpu", d_model)
    assert (found.used, found.asked) == (used, "auto")
    assert reason in found.reason


@pytest.mark.parametrize(("hardware", "used"), [(True, "bf16"), (False, "32")])
def test_a_gpu_takes_bf16_where_it_computes_in_it(monkeypatch, hardware, used):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: hardware)
    assert resolve("auto", "cuda", 64).used == used
    assert resolve("auto", "mps", 64).used == "32"
