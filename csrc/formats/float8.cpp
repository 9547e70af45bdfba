#include "formats/float8.hpp"

namespace pumice::formats {

// Without branches, so that compilers vectorise.
void halve_float8(const uint8_t* codes, int64_t count, uint16_t* bits) noexcept {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = codes[i], size = code & 0x7f;
    const uint32_t nan = (size + 1) & 0x80;  // of 0x7f only, whose exponent is not yet that of a float16 NaN
    bits[i] = static_cast<uint16_t>((code & 0x80) << 8 | size << 7 | nan << 7);
  }
}

}  // namespace pumice::formats
