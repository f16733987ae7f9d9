"""The contract of every seam, for the project's own tests and for a part of one's own.

```python
from attnlab.testing import contract

for check in contract("position", MyEncoding):  # or partial(MyEncoding, strength=2.0)
    check()  # raises AssertionError where the property does not hold
```
"""

from attnlab.testing.contract import SEAMS, Check, contract

__all__ = ["SEAMS", "Check", "contract"]
