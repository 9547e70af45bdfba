// SHA-256 (FIPS 180-4) of pieces of one length side by side. One chain of rounds waits for itself most of the time.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/table.hpp"

namespace pumice::PUMICE_ISA {
namespace {

#ifdef PUMICE_SHA256

alignas(64) constexpr uint32_t kShaConstants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
constexpr uint32_t kShaStart[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
constexpr int64_t kShaBlock = 64, kDigest = 32;

// `count` blocks of each of kPieces, `stride` bytes apart.
template <int kPieces>
inline void sha_blocks(ShaState (&state)[kPieces], const uint8_t* data, int64_t stride, int64_t count) {
  for (int64_t block = 0; block < count; ++block, data += kShaBlock) {
    ShaState s[kPieces];
    ShaWords w[kPieces][4];
    for (int n = 0; n < kPieces; ++n) {
      s[n] = state[n];
      for (int i = 0; i < 4; ++i) w[n][i] = load_sha_words(data + n * stride + 16 * i);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      for (int n = 0; n < kPieces; ++n) {
        s[n] = sha_rounds(s[n], w[n][i % 4], kShaConstants + 4 * i);
        if (i < 12) w[n][i % 4] = next_sha_words(w[n][i % 4], w[n][(i + 1) % 4], w[n][(i + 2) % 4], w[n][(i + 3) % 4]);
      }
    }
    for (int n = 0; n < kPieces; ++n) state[n] = add(state[n], s[n]);
  }
}

template <int kPieces>
inline void sha_pieces(const uint8_t* data, int64_t length, uint8_t* digests) {
  ShaState state[kPieces];
  for (ShaState& each : state) each = sha_state(kShaStart);
  sha_blocks(state, data, length, length / kShaBlock);
  uint8_t end[kShaBlock] = {0x80};  // and the length in bits, big-endian
  for (int i = 0; i < 8; ++i) end[kShaBlock - 1 - i] = static_cast<uint8_t>(static_cast<uint64_t>(length) * 8 >> (8 * i));
  sha_blocks(state, end, 0, 1);
  for (int n = 0; n < kPieces; ++n) {
    uint32_t h[8];
    store_sha_state(h, state[n]);
    for (int i = 0; i < kDigest; ++i) digests[n * kDigest + i] = static_cast<uint8_t>(h[i / 4] >> (24 - i % 4 * 8));
  }
}

void sha256_pieces(const uint8_t* data, int64_t count, int64_t length, uint8_t* digests) {
  int64_t n = 0;
  for (; n + 4 <= count; n += 4) sha_pieces<4>(data + n * length, length, digests + n * kDigest);
  for (; n + 2 <= count; n += 2) sha_pieces<2>(data + n * length, length, digests + n * kDigest);
  if (n < count) sha_pieces<1>(data + n * length, length, digests + n * kDigest);
}

#else

constexpr decltype(KernelTable::sha256_pieces) sha256_pieces = nullptr;

#endif

}  // namespace
}  // namespace pumice::PUMICE_ISA
