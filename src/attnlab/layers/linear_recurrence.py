"""The recurrence behind linear attention and the delta rule, in two forms of one function.

A head keeps a matrix S of keys by values. A token lets it decay, writes its value under its key, and reads by its query
(Yang et al. 2023, arXiv 2312.06635, eq. 3; the delta rule: Yang et al. 2024, arXiv 2412.06464, eq. 10):

    S' = diag(exp(g_t)) S_t-1,    S_t = S' + k_t v_t^T,    o_t = S_t^T q_t

The delta rule writes beta_t (v_t - S'^T k_t) in place of v_t. Decays are sums of logarithms, of which no difference is
taken: nothing overflows or cancels.

Shapes: B batch, H heads, T length, K key width, V value width, X 1 or K (a decay of a head, or of each channel of its
keys), N chunks, C tokens of a chunk (a power of two), P pairs, L tokens of half a pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64


# Of queries, keys, values, log decays (B or 1, H or 1, T, X), beta (None: no delta rule) and the state before.
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]


def recurrent(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay_BHTX: Tensor,
    beta_BHT1: Tensor | None,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """Token by token; the outputs (B, H, T, V) and the state after the last one."""
    outputs = []
    for t in range(q_BHTK.shape[2]):
        state_BHKV = state_BHKV * log_decay_BHTX[:, :, t, :, None].exp()
        k_BHK1, new_BHV = k_BHTK[:, :, t, :, None], v_BHTV[:, :, t]
        if beta_BHT1 is not None:
            new_BHV = beta_BHT1[:, :, t] * (new_BHV - (k_BHK1 * state_BHKV).sum(dim=2))
        state_BHKV = state_BHKV + k_BHK1 * new_BHV[:, :, None]
        outputs.append((q_BHTK[:, :, t, :, None] * state_BHKV).sum(dim=2))
    return torch.stack(outputs, dim=2), state_BHKV


def chunked(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay_BHTX: Tensor,
    beta_BHT1: Tensor | None,
    state_BHKV: Tensor,
    size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """As `recurrent`, by matrix products within chunks and a loop over these. size: the most tokens of a chunk, a power
    of two. Of the delta rule by the UT transform (Yang et al. 2024, arXiv 2406.06484, sections 3.2 and 3.3).
    """
    length = q_BHTK.shape[2]
    size = min(size, 1 << (length - 1).bit_length())
    q, k, v, g = (_in_chunks(x, size) for x in (q_BHTK, k_BHTK, v_BHTV, log_decay_BHTX))
    since_start, until_end = g.cumsum(dim=3), _after(g)
    reads, writes = q * since_start.exp(), k * until_end.exp()  # of the state before the chunk, to the one behind it
    decays = since_start[:, :, :, -1].unbind(dim=2)
    if beta_BHT1 is not None:
        beta, between = _in_chunks(beta_BHT1, size), _between(g)
        written, states = _corrected(k, v, beta, since_start, between, writes, decays, state_BHKV)
        inside = (q @ k.mT * between) @ written
    else:
        inside = (q @ k.mT * _between(g)) @ v if g.shape[4] == 1 else _by_channel(q, k, v, g)
        states = _accumulated((writes.mT @ v).unbind(dim=2), decays, state_BHKV)
    outputs = inside + reads @ torch.stack(states[:-1], dim=2)
    return outputs.flatten(2, 3)[:, :, :length], states[-1]


def counted(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    log_decay_BHTX: Tensor,
    beta_BHT1: Tensor | None,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """No form: zeros, and for torch's counter of operations the products of the recurrent form, which are fewest. Of a
    token and head one write and one read of the state, by the delta rule two reads, 2 K V operations each.
    """
    tokens = q_BHTK.shape[:3].numel()
    row = torch.empty(tokens, 1, q_BHTK.shape[3], device="meta")
    matrix = torch.empty(tokens, *state_BHKV.shape[2:], device="meta")
    for _ in range(2 if beta_BHT1 is None else 3):
        torch.bmm(row, matrix)
    return torch.zeros_like(v_BHTV), state_BHKV


def _in_chunks(x_BHTX: Tensor, size: int) -> Tensor:
    """(B, H, N, C, X), filled up with tokens that neither decay nor write."""
    chunks_BHNCX: Tensor = pad(x_BHTX, (0, 0, 0, -x_BHTX.shape[2] % size)).unflatten(2, (-1, size))
    return chunks_BHNCX


def _after(g: Tensor) -> Tensor:
    """The sum of what comes after each token of dimension -2."""
    return pad(g, (0, 0, -1, 1)).flip(-2).cumsum(dim=-2).flip(-2)


def _between(g_BHNC1: Tensor) -> Tensor:
    """exp(g_j+1 + ... + g_i) for each token i and one before it or itself, j; else 0; (B, H, N, C, C)."""
    size = g_BHNC1.shape[3]
    ones_CC = torch.ones(size, size, dtype=torch.bool, device=g_BHNC1.device)
    sums_BHNCC = g_BHNC1.expand(*g_BHNC1.shape[:4], size).masked_fill(~ones_CC.tril(-1), 0.0).cumsum(dim=3)
    return sums_BHNCC.masked_fill(~ones_CC.tril(), float("-inf")).exp()


def _by_channel(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """What tokens read of their own chunk where channels decay each by itself: the later half reads the earlier one,
    with decays up to where they meet, then so in each half (in place of the blocks of Yang et al. 2023, section 4.3).
    """
    out_BHNCV = (q * k).sum(dim=-1, keepdim=True) * v
    half = 1
    while half < q.shape[3]:
        (_, late_q), (early_k, _), (early_v, _), (early_g, late_g) = (
            x.unflatten(3, (-1, 2, half)).unbind(dim=4) for x in (q, k, v, g)
        )  # (B, H, N, P, L, X) each
        scores = (late_q * late_g.cumsum(dim=-2).exp()) @ (early_k * _after(early_g).exp()).mT
        out_BHNCV = out_BHNCV + pad(scores @ early_v, (0, 0, half, 0)).flatten(3, 4)
        half *= 2
    return out_BHNCV


def _accumulated(added: tuple[Tensor, ...], decays: tuple[Tensor, ...], state_BHKV: Tensor) -> list[Tensor]:
    """The state before each chunk, and the one after the last."""
    states = [state_BHKV]
    for added_BHKV, decay_BHX in zip(added, decays, strict=True):
        states.append(states[-1] * decay_BHX[..., None].exp() + added_BHKV)
    return states


def _corrected(
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    since_start: Tensor,
    between_BHNCC: Tensor,
    writes: Tensor,
    decays: tuple[Tensor, ...],
    state_BHKV: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """What each token writes under its key by the delta rule, (B, H, N, C, V), and the states of `_accumulated`."""
    system_BHNCC = (beta * k) @ k.mT * between_BHNCC  # its diagonal and what is above it are not read
    wanted = torch.cat([beta * v, beta * k * since_start.exp()], dim=-1)
    solved = torch.linalg.solve_triangular(system_BHNCC, wanted, upper=False, unitriangular=True)
    values, keys = (x.unbind(dim=2) for x in solved.split([v.shape[-1], k.shape[-1]], dim=-1))
    states, written = [state_BHKV], []
    for value, key, write, decay_BH1 in zip(values, keys, writes.unbind(dim=2), decays, strict=True):
        written.append(value - key @ states[-1])
        states.append(states[-1] * decay_BH1[..., None].exp() + write.mT @ written[-1])
    return torch.stack(written, dim=2), states
