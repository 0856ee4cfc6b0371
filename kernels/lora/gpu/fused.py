r"""Fused: y += B (A x) in one launch, for few tokens and small ranks.

    y[order[i], n0_s + n]  +=  Σ_r B_s[r, n] Σ_k A_s[r, k] x[order[i], k]        r < rank, n < N_s

With few tokens a launch costs more than the bytes. One program takes one tile of tokens, one slice
s and BLOCK_N * STEPS_N of its columns. It works out the tile's whole h for itself, so A is read
once per program, from the L2 cache after the first: worth it while programs per slice are few.
h stays in registers. No atomics, sums in one order: equal inputs give equal bits. Rows without an
adapter are in no tile and so are not touched.
"""

import triton
import triton.language as tl

from .parts import columns_of, dot, rounded, start_of, tile_of


@triton.jit
def lora_fused(
    x_ptr,  # [T, features], row stride x_stride
    pool_ptr,  # the pool's buffer
    a_offsets_ptr,  # int64 [slots, slices]
    b_offsets_ptr,  # int64 [slots, slices]
    ranks_ptr,  # int32 [slots, slices]
    tiles_ptr,  # int32 [tiles, 3]
    order_ptr,  # int32 [T]
    slice_starts_ptr,  # int32 [slices + 1]
    y_ptr,  # [T, N], row stride y_stride
    features,
    x_stride,
    y_stride,
    BLOCK_M: tl.constexpr,  # tokens: at least the plan's tile_tokens
    BLOCK_R: tl.constexpr,  # at least the largest rank
    BLOCK_K: tl.constexpr,  # features at a time
    BLOCK_N: tl.constexpr,  # columns of y at a time
    STEPS_N: tl.constexpr,  # how often
    ALIGN_N: tl.constexpr,  # divides every N_s
):
    """Grid: (tiles_bound, ceil(widest slice / (BLOCK_N * STEPS_N)), slices)."""
    slot, first, length = tile_of(tiles_ptr)
    if length == 0:
        return
    i_slice = tl.program_id(2)
    i_adapted = slot.to(tl.int64) * tl.num_programs(2) + i_slice
    rank = tl.load(ranks_ptr + i_adapted)
    n_first, columns = columns_of(slice_starts_ptr, i_slice, ALIGN_N)
    own_first = tl.program_id(1) * (BLOCK_N * STEPS_N)
    if (rank == 0) | (own_first >= columns):
        return

    i_m = tl.arange(0, BLOCK_M)
    m_m = i_m < length
    i_row = tl.load(order_ptr + first + i_m, mask=m_m, other=0).to(tl.int64)
    p_x = x_ptr + i_row[:, None] * x_stride
    p_y = y_ptr + i_row[:, None] * y_stride + n_first
    i_r = tl.arange(0, BLOCK_R).to(tl.int64)
    m_r = i_r < rank
    p_ar = start_of(pool_ptr, a_offsets_ptr, i_adapted) + i_r[None, :] * features
    p_br = start_of(pool_ptr, b_offsets_ptr, i_adapted) + i_r[:, None] * columns

    b_h = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k in range(0, features, BLOCK_K):
        i_k = k + tl.arange(0, BLOCK_K)
        m_k = i_k < features
        b_x = tl.load(p_x + i_k[None, :], mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_a = tl.load(p_ar + i_k[:, None], mask=m_r[None, :] & m_k[:, None], other=0.0)
        b_h = dot(b_x, b_a, b_h)
    b_h = rounded(b_h, pool_ptr.dtype.element_ty)

    for step in range(STEPS_N):
        i_n = own_first + step * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = i_n < columns
        m_y = m_m[:, None] & m_n[None, :]
        b_b = tl.load(p_br + i_n[None, :], mask=m_r[:, None] & m_n[None, :], other=0.0)
        b_y = tl.load(p_y + i_n[None, :], mask=m_y, other=0.0).to(tl.float32)
        b_y = dot(b_h, b_b, b_y)
        tl.store(p_y + i_n[None, :], rounded(b_y, y_ptr.dtype.element_ty), mask=m_y)
