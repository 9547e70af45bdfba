// Bitmasks: where values are stored, and the stored values. Portable C++; the definition is docs/formats.md.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace pumice::formats {

inline int64_t mask_bytes(int64_t cols) { return (cols + 7) / 8; }
inline int64_t mask_steps(int64_t cols) { return (cols + 3) / 4; }
// Functions work on the rows [begin, end), so that callers can split rows over threads.

// bitmask[row]: the bits of values that are not 0 (-0.0 is); counts[row]: how many. With `kept` > 0, exactly `kept` of every
// `of` columns, the first zeros if there are fewer values; counts[row] is -1 - column where there are more, of the first such.
void find_places(const void* values, Values type, int64_t cols, int kept, int of, int64_t begin, int64_t end, uint8_t* bitmask,
                 int64_t* counts) noexcept;
// How many bits each row has, or -1 if it has some beyond `cols`; with `kept` > 0, -1 unless `kept` of every `of` columns.
void count_places(const uint8_t* bitmask, int64_t cols, int kept, int of, int64_t begin, int64_t end, int64_t* counts) noexcept;
// Entries of data that a row of `count` values takes.
inline int64_t row_entries(int64_t count, Values type) { return type == Values::kInt4 ? (count + 1) / 2 : count; }

// Signed codes or floats of values[row][cols] -> data, at the places that w.bitmask has.
void gather(const void* values, const Bitmask& w, int64_t begin, int64_t end, void* data) noexcept;
// The inverse, out[row - begin][stride]: stored floats, 0 elsewhere; or unsigned codes, 2^(bits-1) elsewhere and in the padding.
void scatter(const Bitmask& w, int64_t begin, int64_t end, int64_t stride, void* out) noexcept;

// masks[panel][step] (views.hpp, MaskedInt) of panels [begin, end), and how many bytes the codes of each panel take.
void panel_masks(const Bitmask& w, int64_t begin, int64_t end, uint64_t* masks, int64_t* sizes) noexcept;
// The codes of panels [begin, end), that of panel p at data + offsets[p]. False if there is no memory.
bool panel_data(const Bitmask& w, const uint64_t* masks, const int64_t* offsets, int64_t begin, int64_t end,
                uint8_t* data) noexcept;
// The inverses, for the rows of panels [begin, end): their bitmask and counts; then their data, each row at its w.offsets.
void row_masks(const uint64_t* masks, int64_t rows, int64_t cols, int64_t begin, int64_t end, uint8_t* bitmask,
               int64_t* counts) noexcept;
bool row_data(const MaskedInt& panels, const Bitmask& w, int64_t begin, int64_t end, uint8_t* data) noexcept;

}  // namespace pumice::formats
