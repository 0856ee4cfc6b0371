r"""Expand: y += B h for every token with an adapter.

    y[order[i], n0_s + n]  +=  Σ_r B_s[r, n] Σ_part h[part, s, i, r]        r < rank, n < N_s

One program takes one tile of tokens, one slice s and BLOCK_N of its columns, and owns that part of
y: it is read and written once, rounded once. The parts of h are added in their order: equal inputs
give equal bits. Rows without an adapter are in no tile and so are not touched.
"""

import triton
import triton.language as tl

from .parts import columns_of, dot, rounded, start_of, tile_of


# A step's number of tokens must not lead to another compilation.
@triton.jit(do_not_specialize=["h_tokens"])
def lora_expand(
    h_ptr,  # float32 [SPLIT_K, slices, h_tokens, h_ranks]
    pool_ptr,  # the pool's buffer
    b_offsets_ptr,  # int64 [slots, slices]
    ranks_ptr,  # int32 [slots, slices]
    tiles_ptr,  # int32 [tiles, 3]
    order_ptr,  # int32 [T]
    slice_starts_ptr,  # int32 [slices + 1]
    y_ptr,  # [T, N], row stride y_stride
    y_stride,
    h_tokens,
    h_ranks,
    BLOCK_M: tl.constexpr,  # tokens: at least the plan's tile_tokens
    BLOCK_R: tl.constexpr,  # rank rows of B at a time
    BLOCK_N: tl.constexpr,  # columns of y
    SPLIT_K: tl.constexpr,  # parts of h
    ALIGN_N: tl.constexpr,  # divides every N_s
):
    """Grid: (tiles_bound, ceil(widest slice / BLOCK_N), slices)."""
    slot, first, length = tile_of(tiles_ptr)
    if length == 0:
        return
    i_slice, slices = tl.program_id(2), tl.num_programs(2)
    i_adapted = slot.to(tl.int64) * slices + i_slice
    rank = tl.minimum(tl.load(ranks_ptr + i_adapted), h_ranks)  # as shrink
    n_first, columns = columns_of(slice_starts_ptr, i_slice, ALIGN_N)
    if (rank == 0) | (tl.program_id(1) * BLOCK_N >= columns):
        return
    p_b = start_of(pool_ptr, b_offsets_ptr, i_adapted)

    i_m = tl.arange(0, BLOCK_M)
    m_m = i_m < length
    i_row = tl.load(order_ptr + first + i_m, mask=m_m, other=0).to(tl.int64)
    i_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = i_n < columns
    p_y = y_ptr + i_row[:, None] * y_stride + (n_first + i_n)[None, :]
    m_y = m_m[:, None] & m_n[None, :]
    b_y = tl.load(p_y, mask=m_y, other=0.0).to(tl.float32)

    for r_first in range(0, rank, BLOCK_R):
        i_r = r_first + tl.arange(0, BLOCK_R)
        m_r = i_r < rank
        m_h = m_m[:, None] & m_r[None, :]
        p_br = p_b + i_r.to(tl.int64)[:, None] * columns
        b_b = tl.load(p_br + i_n[None, :], mask=m_r[:, None] & m_n[None, :], other=0.0)
        b_h = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for part in tl.static_range(SPLIT_K):
            i_h = (part * slices + i_slice).to(tl.int64) * h_tokens + first + i_m
            p_h = h_ptr + i_h[:, None] * h_ranks
            b_h += tl.load(p_h + i_r[None, :], mask=m_h, other=0.0)
        b_y = dot(rounded(b_h, b_b.dtype), b_b, b_y)
    tl.store(p_y, rounded(b_y, y_ptr.dtype.element_ty), mask=m_y)
