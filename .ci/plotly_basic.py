"""Puts plotly.js's basic bundle beside the code that writes pages, when attnlab is built or installed from its source.

It draws all that a page has in a fifth of the size of the whole library, which plotly's Python package holds; npm has
it alone. Where npm's registry is out of reach the build goes on, and pages carry the whole library.
"""

import base64
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VERSION = "4.1.1"
SHA512 = "1oNF8PeQx2hv/y7tqEVWKD3JGwn/MGEMQ8mL9HUwsaqG9FGy/OU5FHUHvzqbqxN4mnwZGI9abTiE775C4kkjMQ=="  # as npm states it
REGISTRY = "https://registry.npmjs.org"
FILE = Path("src/attnlab/report/plotly-basic.min.js")


class BasicBundle(BuildHookInterface):
    """Fetches the bundle once; what was fetched is checked against its digest."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        there = Path(self.root) / FILE
        if there.exists() and f"plotly.js (basic - minified) v{VERSION}" in there.read_text(encoding="utf-8")[:200]:
            return
        name = "plotly.js-basic-dist-min"
        url = f"{os.environ.get('NPM_CONFIG_REGISTRY', REGISTRY).rstrip('/')}/{name}/-/{name}-{VERSION}.tgz"
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                archive = response.read()
        except (urllib.error.URLError, TimeoutError) as error:
            self.app.display_warning(f"{url}: {error}; pages will carry all of plotly.js, 5 MB instead of 1")
            return
        found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        if found != SHA512:
            raise ValueError(f"{url} must have the sha512 {SHA512}, got {found}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            bundle = packed.extractfile("package/plotly-basic.min.js")
            assert bundle is not None
            made = there.with_suffix(f".{os.getpid()}")
            made.write_bytes(bundle.read())
            made.replace(there)
