"""A first-fit allocator of ranges of one buffer; freed neighbours become one hole again."""

from bisect import bisect_left


class PoolFullError(RuntimeError):
    """The byte budget can't hold another adapter now.

    Attributes:
        needed_bytes: Size of the adapter's weights for the layer.
        free_bytes: Bytes free in all holes together.
        largest_hole_bytes: The biggest single hole.
    """

    def __init__(self, needed_bytes: int, free_bytes: int, largest_hole_bytes: int) -> None:
        super().__init__(
            f"adapter pool is full: needed {needed_bytes} bytes, free {free_bytes}, largest hole "
            f"{largest_hole_bytes}; evict an adapter or give the pool a larger budget"
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.largest_hole_bytes = largest_hole_bytes


class Extents:
    """Hands out [start, start + size) of a space of `capacity` units. Not thread-safe."""

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"got capacity {capacity}; expected 0 or more")
        self.capacity = capacity
        self._holes: list[tuple[int, int]] = [(0, capacity)] if capacity else []
        self._taken: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Units in all holes together."""
        return sum(size for _, size in self._holes)

    @property
    def largest_hole(self) -> int:
        """The most units that one allocation can get now."""
        return max((size for _, size in self._holes), default=0)

    def taken(self) -> list[tuple[int, int]]:
        """(start, size) of every allocation, by start."""
        return sorted(self._taken.items())

    def allocate(self, size: int) -> int | None:
        """Start of a new range from the first hole that fits; None if none does.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"got size {size}; expected at least 1")
        for index, (start, room) in enumerate(self._holes):
            if room >= size:
                left = (start + size, room - size)
                self._holes[index : index + 1] = [left] if left[1] else []
                self._taken[start] = size
                return start
        return None

    def release(self, start: int) -> None:
        """Gives a range back.

        Raises:
            KeyError: No allocation starts there.
        """
        size = self._taken.pop(start)
        index = bisect_left(self._holes, (start, 0))
        last = index
        if index and sum(self._holes[index - 1]) == start:
            index -= 1
            start, size = self._holes[index][0], self._holes[index][1] + size
        if last < len(self._holes) and start + size == self._holes[last][0]:
            size += self._holes[last][1]
            last += 1
        self._holes[index:last] = [(start, size)]

    def compact(self) -> list[tuple[int, int, int]]:
        """Slides all ranges to the front.

        Returns:
            (old start, new start, size) of every range that moves, in an order in which each can
            be copied without overwriting one that has not moved yet.
        """
        moves, end = [], 0
        for start, size in self.taken():
            if start != end:
                moves.append((start, end, size))
            end += size
        for start, _, _ in moves:
            del self._taken[start]
        self._taken.update({new: size for _, new, size in moves})
        self._holes = [(end, self.capacity - end)] if end < self.capacity else []
        return moves
