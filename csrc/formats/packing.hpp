// Codes of a row as a little-endian bit stream: docs/formats.md, "Integers". Of internal linkage, since kernels pack, too.
#pragma once

#include <cstdint>
#include <cstring>

namespace pumice::formats {

// Bytes of a packed row: whole 32-bit words.
static inline int64_t row_bytes(int64_t cols, int bits) { return (cols * bits + 31) / 32 * 4; }

static inline void clear_padding(uint8_t* row, int64_t cols, int bits) noexcept {
  const int64_t used = (cols * bits + 7) / 8;
  std::memset(row + used, 0, static_cast<size_t>(row_bytes(cols, bits) - used));
}

// Packs `count` codes that start on a byte boundary of `out`; the last byte is padded with zero bits.
static inline void pack_strip(const uint8_t* codes, int64_t count, int bits, uint8_t* out) noexcept {
  if (bits == 8) {
    std::memcpy(out, codes, static_cast<size_t>(count));
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < count / 2; ++i) out[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    if (count % 2) out[count / 2] = codes[count - 1];
    return;
  }
  uint32_t stream = 0;
  int held = 0;
  for (int64_t i = 0; i < count; ++i) {
    stream |= static_cast<uint32_t>(codes[i]) << held;
    for (held += bits; held >= 8; held -= 8, stream >>= 8) *out++ = static_cast<uint8_t>(stream);
  }
  if (held) *out = static_cast<uint8_t>(stream);
}

static inline void unpack_strip(const uint8_t* packed, int64_t count, int bits, uint8_t* codes) noexcept {
  if (bits == 8) {
    std::memcpy(codes, packed, static_cast<size_t>(count));
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < count / 2; ++i) {
      codes[2 * i] = packed[i] & 15;
      codes[2 * i + 1] = packed[i] >> 4;
    }
    if (count % 2) codes[count - 1] = packed[count / 2] & 15;
    return;
  }
  uint32_t stream = 0;
  int held = 0;
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    for (; held < bits; held += 8) stream |= static_cast<uint32_t>(*packed++) << held;
    codes[i] = static_cast<uint8_t>(stream & mask);
    stream >>= bits;
    held -= bits;
  }
}

}  // namespace pumice::formats
