"""The one mask builder. True means "may attend".

Shapes: B batch, T target (query) length, S source (key) length.
"""

import torch
from torch import Tensor


def build_mask(
    query_positions_BT: Tensor,
    key_positions_BS: Tensor,
    causal: bool,
    window: int | None = None,
    is_token_BS: Tensor | None = None,
    query_segments_BT: Tensor | None = None,
    key_segments_BS: Tensor | None = None,
    prefix_B1: Tensor | None = None,
) -> Tensor:
    """Who may attend to whom: a bool tensor (B or 1, 1, T, S) from absolute positions.

    causal: no key after its query. window: the query itself and the window-1 keys before it, on both sides where not causal.
    prefix_B1: how many first positions every query sees although they come after it (Raffel et al. 2020, section 3.2.1).
    is_token_BS: False hides a key (padding). Segments (both or neither): a query sees keys of its own segment only.
    """
    distance_BTS = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    allowed_BTS = distance_BTS >= 0 if causal else torch.ones_like(distance_BTS, dtype=torch.bool)
    if prefix_B1 is not None:
        allowed_BTS = allowed_BTS | (key_positions_BS < prefix_B1)[:, None, :]
    if window is not None:
        allowed_BTS = allowed_BTS & (distance_BTS.abs() < window)
    if is_token_BS is not None:
        allowed_BTS = allowed_BTS & is_token_BS[:, None, :]
    if query_segments_BT is not None and key_segments_BS is not None:
        allowed_BTS = allowed_BTS & (query_segments_BT[:, :, None] == key_segments_BS[:, None, :])
    return allowed_BTS[:, None]
