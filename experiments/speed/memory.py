"""The memory that a call takes on a CPU."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def most_bytes(call: Callable[[], object]) -> int:
    """The most bytes that a call holds at one instant, of those that torch's profiler sees allocated and freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    results = seen.profiler.kineto_results if seen.profiler is not None else None
    assert results is not None, "torch was built without its profiler"
    held = most = 0
    for change in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most
