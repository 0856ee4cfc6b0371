"""What the kernels share: reading a tile, and arithmetic that the interpreter gets right too.

Prefixes of values in this folder's kernels: `p_` pointer, `b_` block of values, `i_` indices,
`m_` mask; scalars have none. Suffixes of shapes outside of kernels: T tokens, K input features,
N output features, R rank.
"""

import triton
import triton.language as tl
from triton import knobs

# TRITON_INTERPRET=1, which must be set before triton is imported for the first time.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


def device_function(function):
    """`triton.jit`. The interpreter runs plain functions, and saves some 6 ms a call that way."""
    return function if INTERPRETED.value else triton.jit(function)


@device_function
def tile_of(tiles_ptr):
    """Slot, first index into order, and length of this program's tile; 0 beyond the step's tiles.

    The plan keeps tiles beyond its count at length 0, so that the count itself needs no load that
    everything else would wait for.
    """
    p_tile = tiles_ptr + tl.program_id(0) * 3
    return tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 2)


@device_function
def start_of(pool_ptr, offsets_ptr, i_adapted):
    """Where A or B of one (slot, slice) begins. The pool aligns to 64 bytes: 16 elements or more.

    Saying so is what makes loads 16 bytes wide: the compiler can't see it in a loaded number.
    """
    return pool_ptr + tl.multiple_of(tl.load(offsets_ptr + i_adapted), 16)


@device_function
def columns_of(slice_starts_ptr, i_slice, ALIGN_N: tl.constexpr):
    """First column of a slice in y, and how many there are; ALIGN_N divides both."""
    first = tl.multiple_of(tl.load(slice_starts_ptr + i_slice), ALIGN_N)
    return first, tl.multiple_of(tl.load(slice_starts_ptr + i_slice + 1) - first, ALIGN_N)


@device_function
def dot(b_left, b_right, b_sum):
    """b_sum + b_left b_right, summed in float32, float32 inputs not shortened to tf32."""
    if INTERPRETED:  # multiplies the bits of bfloat16 as integers
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    return tl.dot(b_left, b_right, b_sum, input_precision="ieee")


@device_function
def rounded(b_values, dtype: tl.constexpr):
    """float32 to the nearest `dtype`, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:  # cuts off instead of rounding
        b_bits = b_values.to(tl.uint32, bitcast=True)
        b_bits += 0x7FFF + ((b_bits >> 16) & 1)
        b_values = b_bits.to(tl.float32, bitcast=True)
    return b_values.to(dtype)
