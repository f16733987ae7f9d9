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


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    making = RowsInTheMaking(10)
    making.add(np.arange(9))
    making.done().save(tmp_path, "some")
    np.save(tmp_path / "some.npy", np.arange(5, dtype=np.uint16))
    with pytest.raises(ValueError, match="is not whole"):
        TokenRows.load(tmp_path, "some")
    (tmp_path / "some.npy").write_bytes(b"")
    with pytest.raises((OSError, ValueError, EOFError)):
        TokenRows.load(tmp_path, "some")
