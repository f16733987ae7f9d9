"""Who may look: a request has to come through this machine's own address and carry the token that was printed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Access:
    """The token of one start of the server, and how it is asked for: at first in the address, then in a cookie of the port's own.

    Browsers send cookies of 127.0.0.1 to every port there, so that two servers would otherwise overwrite each other's.
    """

    def __init__(self, port: int, token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self.name = f"attnlab-{port}"
        self._hosts = {f"{name}:{port}" for name in LOOPBACK} | (set(LOOPBACK) if port == 80 else set())

    def is_own_host(self, host: str | None) -> bool:
        """Whether a request's Host names loopback and this port: a foreign name that was pointed at this machine does not."""
        return host is not None and host.lower() in self._hosts

    def is_token(self, given: str) -> bool:
        """Whether it is the token, compared in a time that tells nothing of it."""
        return secrets.compare_digest(given.encode(errors="replace"), self.token.encode())

    def is_in_cookies(self, cookies: Iterable[str]) -> bool:
        """Whether one of a request's Cookie headers carries the token."""
        pairs = (pair.strip().partition("=") for header in cookies for pair in header.split(";"))
        return any(self.is_token(value) for name, _, value in pairs if name == self.name)

    @property
    def cookie(self) -> str:
        """The cookie as a header's value: for no script to read, and for no other site to send."""
        return f"{self.name}={self.token}; Path=/; HttpOnly; SameSite=Strict"
