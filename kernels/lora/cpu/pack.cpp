// Moves an adapter's matrices from the order of its file to that of memory (layout.py): A as it is,
// B transposed. One call for all of them, so that the interpreter's lock is free meanwhile.
#include <string.h>

#include "grouped.h"

namespace {

// Writes b [rows, columns] as [columns, rows]; returns whether anything in it is not zero.
template <class T>
bool transpose(const T* b, T* to, int64_t rows, int64_t columns) {
  constexpr int64_t kRows = 64;  // of b at a time: they stay in the first cache for all columns
  T seen = 0;
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t last = first + kRows < rows ? first + kRows : rows;
    for (int64_t j = 0; j < columns; j++)
      for (int64_t n = first; n < last; n++) {
        const T value = b[n * columns + j];
        seen |= value;
        to[j * rows + n] = value;
      }
  }
  return static_cast<T>(seen << 1) != 0;  // minus zero is zero
}

}  // namespace

extern "C" int64_t lb_pack(const void* source, void* target, const LbCopy* copies, int64_t count,
                           int itemsize) {
  if (itemsize != 2 && itemsize != 4) return -1;
  int64_t zeros = 0;
  for (int64_t index = 0; index < count; index++) {
    const LbCopy& copy = copies[index];
    const char* from = static_cast<const char*>(source) + copy.source;
    char* to = static_cast<char*>(target) + copy.target * itemsize;
    bool adapts = true;
    if (!copy.transposed)
      memcpy(to, from, copy.rows * copy.columns * itemsize);
    else if (itemsize == 2)
      adapts = transpose(reinterpret_cast<const uint16_t*>(from), reinterpret_cast<uint16_t*>(to),
                         copy.rows, copy.columns);
    else
      adapts = transpose(reinterpret_cast<const uint32_t*>(from), reinterpret_cast<uint32_t*>(to),
                         copy.rows, copy.columns);
    if (!adapts) zeros++;
  }
  return zeros;
}
