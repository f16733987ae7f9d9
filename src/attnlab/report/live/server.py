"""Shows studies in a browser on this machine: read only, on loopback alone, to whoever has the token."""

from __future__ import annotations

import errno
import gzip
import secrets
import socketserver
import sys
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from attnlab.report.live.live_study import Shelf, macro
from attnlab.report.live.routes import HTML, TEXT, Answer, Answers, place

HOST = "127.0.0.1"
LOOPBACK = (HOST, "localhost", "[::1]")
FIRST_PORT, PORTS = 8790, 20
SMALL = 1000  # bytes that are not worth packing
ALWAYS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
NO_HOST = "This server is asked by http://127.0.0.1:{port}/ alone; with ssh -L, use the same port on both sides."
NO_TOKEN = "Open the address with the token that attnlab serve printed."


class Access:
    """The token of one start of the server: asked for at first in the address, then in a cookie of the port's own.

    Browsers send cookies of 127.0.0.1 to every port there, so that two servers would otherwise overwrite each other's.
    """

    def __init__(self, port: int, token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self.name = f"attnlab-{port}"
        self._once: set[str] = set()
        self._hosts = {f"{name}:{port}" for name in LOOPBACK} | (set(LOOPBACK) if port == 80 else set())

    def is_own_host(self, host: str | None) -> bool:
        """Whether a request's Host names loopback and this port: a foreign name pointed at this machine does not."""
        return host is not None and host.lower() in self._hosts

    def once(self) -> str:
        """A token for one visit: a browser's command line, say, is seen by all users of a machine."""
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
        pairs = (pair.strip().partition("=") for header in cookies for pair in header.split(";"))
        return any(is_equal(value, self.token) for name, _, value in pairs if name == self.name)

    @property
    def cookie(self) -> str:
        """The cookie as a header's value: for no script to read, and for no other site to send."""
        return f"{self.name}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def is_equal(given: str, secret: str) -> bool:
    """Compared in a time that tells nothing of the secret."""
    return secrets.compare_digest(given.encode(errors="replace"), secret.encode())


class Server(ThreadingHTTPServer):
    """Serves the studies that `find` names ({name: directory}) until it is shut down.

    port: 0 takes the first that is free, from 8790 on. token: random at every start. pause: seconds between two
    readings at least. Raises ValueError where the port is in use or may not be taken.
    """

    daemon_threads = True
    allow_reuse_port = False  # a second server would silently share the port

    def __init__(
        self, find: Callable[[], Mapping[str, Path]], port: int = 0, token: str | None = None, pause: float = 1.0
    ) -> None:
        self.answers = Answers(Shelf(find, pause), pause)
        self._take(port)
        self.port: int = self.server_address[1]
        self.access = Access(self.port, token)

    def _take(self, port: int) -> None:
        for candidate in [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS):
            try:
                super().__init__((HOST, candidate), Handler)
                return
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                is_used = error.errno == errno.EADDRINUSE
        if not port:
            raise ValueError(f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are all in use; choose one by --port")
        why = "is in use" if is_used else "may not be taken by this user"
        raise ValueError(f"port {port} {why}; choose another by --port, or leave it out for the first that is free")

    def server_bind(self) -> None:
        """Without the look-up of a name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def address(self, path: str = "/", once: bool = False) -> str:
        """The address to open first, with the token, or with one for one visit."""
        return f"http://{HOST}:{self.port}{path}?token={self.access.once() if once else self.access.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to speak of; anything else is one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"attnlab: a request failed: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """One request: first from where it comes, then whether it has the token, then what it asks for."""

    server: Server
    timeout = 30

    def do_GET(self) -> None:
        try:
            answer = self._answer()
        except Exception as error:
            answer = Answer(500, TEXT, f"This cannot be shown: {type(error).__name__}: {error}")
        self._send(answer)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self) -> Answer:
        access = self.server.access
        path, _, query = self.path.partition("?")
        if not access.is_own_host(self.headers.get("Host")):
            return Answer(403, TEXT, NO_HOST.format(port=self.server.port))
        tokens = parse_qs(query).get("token")
        if tokens:
            return self._let_in(place(path)) if access.admits(tokens[0]) else Answer(403, TEXT, NO_TOKEN)
        if not access.is_in_cookies(self.headers.get_all("Cookie", [])):
            return Answer(403, TEXT, NO_TOKEN)
        return self.server.answers.to(path)

    def _let_in(self, path: str) -> Answer:
        """On to the address without the token. From another site's link a browser would go there without the cookie."""
        cookie = self.server.access.cookie
        if self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
            return Answer(303, TEXT, "", path, cookie=cookie)
        return Answer(200, HTML, macro("redirect", path), cookie=cookie)

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode()
        is_packed = len(body) > SMALL and "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, 4) if is_packed else body
        self.send_response(answer.status)
        headers = {**ALWAYS, "Content-Security-Policy": answer.policy, "Content-Type": f"{answer.kind}; charset=utf-8"}
        headers |= {"Content-Encoding": "gzip"} if is_packed else {}
        headers |= {"Location": answer.location} if answer.location else {}
        headers |= {"ETag": f'"{answer.version}"'} if answer.version else {}
        headers |= {"Set-Cookie": answer.cookie} if answer.cookie else {}
        headers |= {"Allow": "GET, HEAD"} if answer.status == 405 else {}
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself: methods other than GET and HEAD, and requests that are none."""
        self.close_connection = True
        is_method = code == 501
        words = "Only GET and HEAD are answered." if is_method else "This is no request that can be answered."
        self._send(Answer(405 if is_method else int(code), TEXT, words))

    def version_string(self) -> str:
        return "attnlab"

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: their addresses may hold the token."""
        return
