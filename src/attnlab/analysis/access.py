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
        self._once: set[str] = set()
        self._hosts = {f"{name}:{port}" for name in LOOPBACK} | (set(LOOPBACK) if port == 80 else set())

    def is_own_host(self, host: str | None) -> bool:
        """Whether a request's Host names loopback and this port: a foreign name that was pointed at this machine does not."""
        return host is not None and host.lower() in self._hosts

    def once(self) -> str:
        """A token for one visit, where others may read it on its way: a browser's command line is seen by all users of a machine."""
        token = secrets.token_urlsafe(24)
        self._once.add(token)
        return token

    def admits(self, given: str) -> bool:
        """Whether an address's token is right; one for one visit is used up."""
        for token in list(self._once):
            if is_equal(given, token):
                self._once.discard(token)
                return True
        return is_equal(given, self.token)

    def is_in_cookies(self, cookies: Iterable[str]) -> bool:
        """Whether one of a request's Cookie headers carries the token."""
        pairs = (pair.strip().partition("=") for header in cookies for pair in header.split(";"))
        return any(is_equal(value, self.token) for name, _, value in pairs if name == self.name)

    @property
    def cookie(self) -> str:
        """The cookie as a header's value: for no script to read, and for no other site to send."""
        return f"{self.name}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def is_equal(given: str, secret: str) -> bool:
    """Compared in a time that tells nothing of the secret."""
    return secrets.compare_digest(given.encode(errors="replace"), secret.encode())
