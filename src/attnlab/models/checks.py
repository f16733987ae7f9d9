"""What every model refuses in the same words."""


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} is no size; accepted: 1 or more")


def check_rate(**rates: float) -> None:
    """Raises ValueError for a rate, as of dropout, outside of 0 to 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name}={rate} is no rate; accepted: 0 or more, below 1")
