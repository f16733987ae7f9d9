"""Pages of studies on loopback, following what runs."""
