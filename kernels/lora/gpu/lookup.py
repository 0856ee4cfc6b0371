r"""Lookup: h = A[:, id] for every token with an adapter; shrink where x is a one-hot row.

    h[0, i, r]  =  A[r, ids[order[i]]]        r < rank of the slot of i

One program takes one tile of tokens. Expand, which follows, adds up SPLIT_K parts of h: the first
one holds the values, the others zeros. Entries at or beyond the rank are neither written nor read.
"""

import triton
import triton.language as tl

from .parts import start_of, tile_of


# A step's number of tokens must not lead to another compilation.
@triton.jit(do_not_specialize=["h_tokens"])
def lora_lookup(
    ids_ptr,  # [T] token ids
    pool_ptr,  # the pool's buffer
    a_offsets_ptr,  # int64 [slots, 1]
    ranks_ptr,  # int32 [slots, 1]
    tiles_ptr,  # int32 [tiles, 3]
    order_ptr,  # int32 [T]
    h_ptr,  # float32 [SPLIT_K, 1, h_tokens, h_ranks]
    vocab,
    h_tokens,
    h_ranks,
    BLOCK_M: tl.constexpr,  # tokens: at least the plan's tile_tokens
    BLOCK_R: tl.constexpr,  # rank rows of A at a time
    SPLIT_K: tl.constexpr,  # parts of h
):
    """Grid: (tiles_bound,)."""
    slot, first, length = tile_of(tiles_ptr)
    if length == 0:
        return
    i_slot = slot.to(tl.int64)
    rank = tl.minimum(tl.load(ranks_ptr + i_slot), h_ranks)  # never writes past h
    p_a = start_of(pool_ptr, a_offsets_ptr, i_slot)

    i_m = tl.arange(0, BLOCK_M)
    m_m = i_m < length
    i_row = tl.load(order_ptr + first + i_m, mask=m_m, other=0)
    i_id = tl.load(ids_ptr + i_row, mask=m_m, other=0).to(tl.int64)
    for r_first in range(0, rank, BLOCK_R):
        i_r = r_first + tl.arange(0, BLOCK_R)
        m_h = m_m[:, None] & (i_r < rank)[None, :]
        p_ar = p_a + i_r.to(tl.int64)[None, :] * vocab
        b_h = tl.load(p_ar + i_id[:, None], mask=m_h, other=0.0).to(tl.float32)
        for part in tl.static_range(SPLIT_K):  # pyright: ignore[reportGeneralTypeIssues]
            i_h = tl.cast(part, tl.int64) * h_tokens + first + i_m
            p_h = h_ptr + i_h[:, None] * h_ranks
            tl.store(p_h + i_r[None, :], b_h, mask=m_h)
            b_h = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
