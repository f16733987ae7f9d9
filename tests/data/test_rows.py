"""Token rows as one array: the rows that went in come out, from memory and from disk."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlab.data import rows as module
from attnlab.data.rows import RowsInTheMaking, TokenRows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(0, 65_000), max_size=5), max_size=12),
    size=st.sampled_from([65_536, 65_537]),
    together=st.integers(1, 13),
)
def test_rows_come_out_as_they_went_in(tmp_path, monkeypatch, rows, size, together):
    monkeypatch.setattr(module, "TOGETHER", together)
    making = RowsInTheMaking(size)
    for row in rows:
        making.add(np.array(row, dtype=np.int64))
    made = making.done()
    made.save(tmp_path, "some")
    for found in (made, TokenRows.load(tmp_path, "some")):
        assert found.tokens_N.dtype == (np.uint16 if size == 65_536 else np.uint32)
        assert len(found) == len(rows)
        assert [row.tolist() for row in found] == [found[i].tolist() for i in range(len(rows))] == rows
        assert found.lengths_R.tolist() == [len(row) for row in rows]
        assert [found[i - len(rows)].tolist() for i in range(len(rows))] == rows
        with pytest.raises(IndexError):
            found[len(rows)]
