#include "formats/bitmask.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace pumice::formats {
namespace {

constexpr int64_t kRows = kPanelRows;

// Up to 64 bits of a row from byte `byte` on.
uint64_t load_bits(const uint8_t* row, int64_t bytes, int64_t byte) noexcept {
  uint64_t bits = 0;
  std::memcpy(&bits, row + byte, static_cast<size_t>(std::min<int64_t>(8, bytes - byte)));
  return bits;
}

int64_t count_bits(const uint8_t* row, int64_t bytes) noexcept {
  int64_t count = 0;
  for (int64_t byte = 0; byte < bytes; byte += 8) count += __builtin_popcountll(load_bits(row, bytes, byte));
  return count;
}

// T: the bits of a value, of which kSign does not make it differ from 0.
template <class T, T kSign>
void mark(const T* values, int64_t cols, uint8_t* row) noexcept {
  int64_t c = 0;
  for (; c + 8 <= cols; c += 8) {
    unsigned bits = 0;
    for (int i = 0; i < 8; ++i) bits |= static_cast<unsigned>((values[c + i] & static_cast<T>(~kSign)) != 0) << i;
    row[c / 8] = static_cast<uint8_t>(bits);
  }
  if (c == cols) return;
  unsigned bits = 0;
  for (int i = 0; c + i < cols; ++i) bits |= static_cast<unsigned>((values[c + i] & static_cast<T>(~kSign)) != 0) << i;
  row[c / 8] = static_cast<uint8_t>(bits);
}

bool bit_at(const uint8_t* row, int64_t c) noexcept { return row[c / 8] >> (c % 8) & 1; }

// Bits in every `of` columns: adds the first zeros up to `kept`; the first column of one with more, or -1.
int64_t fill_places(uint8_t* row, int64_t cols, int kept, int of) noexcept {
  for (int64_t c = 0; c < cols; c += of) {
    int set = 0;
    for (int i = 0; i < of; ++i) set += bit_at(row, c + i);
    if (set > kept) return c;
    for (int64_t at = c; set < kept; ++at) {
      if (bit_at(row, at)) continue;
      row[at / 8] = static_cast<uint8_t>(row[at / 8] | 1u << (at % 8));
      ++set;
    }
  }
  return -1;
}

// use(column) for each set bit of a row, in order.
template <class Use>
void for_places(const uint8_t* row, int64_t cols, const Use& use) noexcept {
  const int64_t bytes = mask_bytes(cols);
  for (int64_t byte = 0; byte < bytes; byte += 8) {
    for (uint64_t bits = load_bits(row, bytes, byte); bits; bits &= bits - 1) use(byte * 8 + __builtin_ctzll(bits));
  }
}

template <class T>
void gather_row(const T* values, const uint8_t* row, int64_t cols, T* out) noexcept {
  for_places(row, cols, [&](int64_t c) { *out++ = values[c]; });
}

void gather_nibbles(const int8_t* values, const uint8_t* row, int64_t cols, uint8_t* out) noexcept {
  bool high = false;
  for_places(row, cols, [&](int64_t c) {
    const auto code = static_cast<uint8_t>(values[c] + 8);
    if (high) {
      *out = static_cast<uint8_t>(*out | code << 4);
      ++out;
    } else {
      *out = code;
    }
    high = !high;
  });
}

template <class T>
void scatter_row(const T* data, const uint8_t* row, int64_t cols, int64_t stride, T* out) noexcept {
  std::memset(out, 0, static_cast<size_t>(stride) * sizeof(T));
  for_places(row, cols, [&](int64_t c) { out[c] = *data++; });
}

// Stored codes [first, first + count) of a row that begins at `data`, a byte each and unsigned.
void unpack_codes(const uint8_t* data, Values type, int64_t count, uint8_t* out) noexcept {
  if (type == Values::kInt8) {
    for (int64_t i = 0; i < count; ++i) out[i] = data[i] ^ 0x80;
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(data[i / 2] >> (i % 2 * 4) & 15);
}

void pack_codes(const uint8_t* codes, Values type, int64_t count, uint8_t* data) noexcept {
  if (type == Values::kInt8) {
    for (int64_t i = 0; i < count; ++i) data[i] = codes[i] ^ 0x80;
    return;
  }
  for (int64_t i = 0; i + 1 < count; i += 2) data[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
  if (count % 2) data[count / 2] = codes[count - 1];
}

// Codes in memory of their own, a row after the other.
class Codes {
 public:
  explicit Codes(int64_t bytes) noexcept : memory_(static_cast<uint8_t*>(std::malloc(static_cast<size_t>(bytes) + 1))) {}
  ~Codes() { std::free(memory_); }
  Codes(const Codes&) = delete;
  Codes& operator=(const Codes&) = delete;
  uint8_t* get() const noexcept { return memory_; }

 private:
  uint8_t* memory_;
};

}  // namespace

void find_places(const void* values, Values type, int64_t cols, int kept, int of, int64_t begin, int64_t end, uint8_t* bitmask,
                 int64_t* counts) noexcept {
  const int64_t bytes = mask_bytes(cols);
  for (int64_t r = begin; r < end; ++r) {
    uint8_t* row = bitmask + r * bytes;
    switch (value_bytes(type)) {
      case 4: mark<uint32_t, 0x80000000u>(static_cast<const uint32_t*>(values) + r * cols, cols, row); break;
      case 2: mark<uint16_t, 0x8000u>(static_cast<const uint16_t*>(values) + r * cols, cols, row); break;
      default: mark<uint8_t, 0>(static_cast<const uint8_t*>(values) + r * cols, cols, row);
    }
    const int64_t full = kept ? fill_places(row, cols, kept, of) : -1;
    counts[r] = full < 0 ? count_bits(row, bytes) : -1 - full;
  }
}

void count_places(const uint8_t* bitmask, int64_t cols, int kept, int of, int64_t begin, int64_t end,
                  int64_t* counts) noexcept {
  const int64_t bytes = mask_bytes(cols);
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* row = bitmask + r * bytes;
    counts[r] = cols % 8 && row[bytes - 1] >> (cols % 8) ? -1 : count_bits(row, bytes);
    for (int64_t c = 0; kept && c < cols; c += of) {
      int set = 0;
      for (int i = 0; i < of; ++i) set += bit_at(row, c + i);
      if (set != kept) counts[r] = -1;
    }
  }
}

void gather(const void* values, const Bitmask& w, int64_t begin, int64_t end, void* data) noexcept {
  const int64_t bytes = mask_bytes(w.cols);
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* row = w.bitmask + r * bytes;
    const int64_t from = r * w.cols, to = w.offsets[r];
    if (w.values == Values::kInt4) {
      gather_nibbles(static_cast<const int8_t*>(values) + from, row, w.cols, static_cast<uint8_t*>(data) + to);
    } else if (w.values == Values::kInt8) {
      gather_row(static_cast<const uint8_t*>(values) + from, row, w.cols, static_cast<uint8_t*>(data) + to);
    } else if (w.values == Values::kFloat32) {
      gather_row(static_cast<const uint32_t*>(values) + from, row, w.cols, static_cast<uint32_t*>(data) + to);
    } else {
      gather_row(static_cast<const uint16_t*>(values) + from, row, w.cols, static_cast<uint16_t*>(data) + to);
    }
  }
}

void scatter(const Bitmask& w, int64_t begin, int64_t end, int64_t stride, void* out) noexcept {
  const int64_t bytes = mask_bytes(w.cols);
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* row = w.bitmask + r * bytes;
    const int64_t from = w.offsets[r], to = (r - begin) * stride;
    if (w.values == Values::kFloat32) {
      scatter_row(static_cast<const uint32_t*>(w.data) + from, row, w.cols, stride, static_cast<uint32_t*>(out) + to);
    } else if (value_bytes(w.values) == 2) {
      scatter_row(static_cast<const uint16_t*>(w.data) + from, row, w.cols, stride, static_cast<uint16_t*>(out) + to);
    } else {
      const uint8_t* data = static_cast<const uint8_t*>(w.data) + from;
      uint8_t* codes = static_cast<uint8_t*>(out) + to;
      std::memset(codes, w.values == Values::kInt8 ? 0x80 : 8, static_cast<size_t>(stride));
      if (w.values == Values::kInt8) {
        for_places(row, w.cols, [&](int64_t c) { codes[c] = *data++ ^ 0x80; });
      } else {
        int shift = 0;
        for_places(row, w.cols, [&](int64_t c) {
          codes[c] = *data >> shift & 15;
          data += shift / 4;
          shift ^= 4;
        });
      }
    }
  }
}

void panel_masks(const Bitmask& w, int64_t begin, int64_t end, uint64_t* masks, int64_t* sizes) noexcept {
  const int64_t bytes = mask_bytes(w.cols), steps = mask_steps(w.cols);
  for (int64_t panel = begin; panel < end; ++panel) {
    uint64_t* out = masks + panel * steps;
    int64_t size = 0;
    for (int64_t byte = 0; byte < bytes; byte += 8) {  // 64 columns: 16 words of 4
      uint64_t words[16] = {};
      for (int64_t r = 0; r < kRows && panel * kRows + r < w.rows; ++r) {
        const uint64_t bits = load_bits(w.bitmask + (panel * kRows + r) * bytes, bytes, byte);
        for (int s = 0; s < 16; ++s) words[s] |= (bits >> (4 * s) & 15) << (4 * r);
      }
      for (int s = 0; s < 16 && byte * 2 + s < steps; ++s) {
        out[byte * 2 + s] = words[s];
        const int count = __builtin_popcountll(words[s]);
        size += w.values == Values::kInt8 ? count : (count + 1) / 2;
      }
    }
    sizes[panel] = size;
  }
}

bool panel_data(const Bitmask& w, const uint64_t* masks, const int64_t* offsets, int64_t begin, int64_t end,
                uint8_t* data) noexcept {
  const int64_t steps = mask_steps(w.cols), stride = w.cols + 4;  // 4 bytes are read at a time
  Codes codes(kRows * stride);
  if (!codes.get()) return false;
  for (int64_t panel = begin; panel < end; ++panel) {
    const uint8_t* at[kRows] = {};
    for (int64_t r = 0; r < kRows; ++r) {
      uint8_t* row = codes.get() + r * stride;
      at[r] = row;
      if (panel * kRows + r >= w.rows) continue;
      const int64_t first = w.offsets[panel * kRows + r], entries = w.offsets[panel * kRows + r + 1] - first;
      const int64_t most = std::min(w.cols, w.values == Values::kInt4 ? entries * 2 : entries);
      unpack_codes(static_cast<const uint8_t*>(w.data) + first, w.values, most, row);
    }
    uint8_t* out = data + offsets[panel];
    for (int64_t step = 0; step < steps; ++step) {
      const uint64_t mask = masks[panel * steps + step];
      uint8_t word[64 + 4];
      int count = 0;
      for (int r = 0; r < kRows; ++r) {
        const int some = __builtin_popcount(static_cast<unsigned>(mask >> (4 * r) & 15));
        std::memcpy(word + count, at[r], 4);
        at[r] += some;
        count += some;
      }
      if (w.values == Values::kInt8) {
        std::memcpy(out, word, static_cast<size_t>(count));
        out += count;
      } else {
        pack_codes(word, w.values, count, out);
        out += (count + 1) / 2;
      }
    }
  }
  return true;
}

void row_masks(const uint64_t* masks, int64_t rows, int64_t cols, int64_t begin, int64_t end, uint8_t* bitmask,
               int64_t* counts) noexcept {
  const int64_t bytes = mask_bytes(cols), steps = mask_steps(cols);
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t r = 0; r < kRows && panel * kRows + r < rows; ++r) {
      uint8_t* row = bitmask + ((panel - begin) * kRows + r) * bytes;
      for (int64_t byte = 0; byte < bytes; ++byte) {
        const uint64_t* pair = masks + panel * steps + byte * 2;
        const uint64_t high = byte * 2 + 1 < steps ? pair[1] >> (4 * r) & 15 : 0;
        row[byte] = static_cast<uint8_t>((pair[0] >> (4 * r) & 15) | high << 4);
      }
      counts[(panel - begin) * kRows + r] = count_bits(row, bytes);
    }
  }
}

bool row_data(const MaskedInt& panels, const Bitmask& w, int64_t begin, int64_t end, uint8_t* data) noexcept {
  const int64_t steps = mask_steps(w.cols);
  Codes codes(kRows * w.cols);
  if (!codes.get()) return false;
  for (int64_t panel = begin; panel < end; ++panel) {
    int64_t counts[kRows] = {};
    const uint8_t* from = panels.data + panels.offsets[panel];
    for (int64_t step = 0; step < steps; ++step) {
      const uint64_t mask = panels.masks[panel * steps + step];
      uint8_t word[64];
      const int count = __builtin_popcountll(mask);
      if (w.values == Values::kInt8) {
        std::memcpy(word, from, static_cast<size_t>(count));
        from += count;
      } else {
        unpack_codes(from, w.values, count, word);
        from += (count + 1) / 2;
      }
      const uint8_t* at = word;
      for (int r = 0; r < kRows; ++r) {
        for (int left = __builtin_popcount(static_cast<unsigned>(mask >> (4 * r) & 15)); left > 0; --left) {
          codes.get()[r * w.cols + counts[r]++] = *at++;
        }
      }
    }
    for (int64_t r = 0; r < kRows && panel * kRows + r < panels.dense.rows; ++r) {
      pack_codes(codes.get() + r * w.cols, w.values, counts[r], data + w.offsets[(panel - begin) * kRows + r]);
    }
  }
  return true;
}

}  // namespace pumice::formats
