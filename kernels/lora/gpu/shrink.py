r"""Shrink: h = A x for every token with an adapter, in parts along K.

    h[part, s, i, r]  =  Σ_{k in part} A_s[r, k] x[order[i], k]        r < rank of (slot of i, s)

One program takes one tile of tokens (all of one adapter), one slice s and one part of K. Parts are
stored side by side and added up by expand in a fixed order: nothing has to be zeroed before, no
atomics, and equal inputs give equal bits. h is float32 and in the order of the plan, not of rows,
so that a tile's h is one piece. Entries at or beyond the rank are neither written nor read.
"""

import triton
import triton.language as tl

from .parts import dot, start_of, tile_of


# A step's number of tokens must not lead to another compilation.
@triton.jit(do_not_specialize=["h_tokens"])
def lora_shrink(
    x_ptr,  # [T, features], row stride x_stride
    pool_ptr,  # the pool's buffer
    a_offsets_ptr,  # int64 [slots, slices]
    ranks_ptr,  # int32 [slots, slices]
    tiles_ptr,  # int32 [tiles, 3]
    order_ptr,  # int32 [T]
    h_ptr,  # float32 [SPLIT_K, slices, h_tokens, h_ranks]
    features,
    x_stride,
    h_tokens,
    h_ranks,
    BLOCK_M: tl.constexpr,  # tokens: at least the plan's tile_tokens
    BLOCK_R: tl.constexpr,  # rank rows of A at a time
    BLOCK_K: tl.constexpr,  # features at a time
    SPLIT_K: tl.constexpr,  # parts of K
):
    """Grid: (tiles_bound, SPLIT_K, slices)."""
    slot, first, length = tile_of(tiles_ptr)
    if length == 0:
        return
    part, i_slice, slices = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    i_adapted = slot.to(tl.int64) * slices + i_slice
    rank = tl.minimum(tl.load(ranks_ptr + i_adapted), h_ranks)  # never writes past h
    p_a = start_of(pool_ptr, a_offsets_ptr, i_adapted)

    i_m = tl.arange(0, BLOCK_M)
    m_m = i_m < length
    i_row = tl.load(order_ptr + first + i_m, mask=m_m, other=0).to(tl.int64)
    p_x = x_ptr + i_row[:, None] * x_stride
    i_h = (part * slices + i_slice).to(tl.int64) * h_tokens + first + i_m
    p_h = h_ptr + i_h[:, None] * h_ranks

    per_part = tl.cdiv(features, SPLIT_K * BLOCK_K) * BLOCK_K
    k_first = part * per_part
    k_end = tl.minimum(k_first + per_part, features)
    for r_first in range(0, rank, BLOCK_R):
        i_r = r_first + tl.arange(0, BLOCK_R)
        m_r = i_r < rank
        p_ar = p_a + i_r.to(tl.int64)[None, :] * features
        b_h = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for k in range(k_first, k_end, BLOCK_K):
            i_k = k + tl.arange(0, BLOCK_K)
            m_k = i_k < k_end
            b_x = tl.load(p_x + i_k[None, :], mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_a = tl.load(p_ar + i_k[:, None], mask=m_r[None, :] & m_k[:, None], other=0.0)
            b_h = dot(b_x, b_a, b_h)
        tl.store(p_h + i_r[None, :], b_h, mask=m_m[:, None] & m_r[None, :])
