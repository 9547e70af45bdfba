// GCC's _tile_loadconfig says that it reads 8 bytes of the 64 (before GCC 13; llama.cpp's pull request 26954), and what
// is stored in the others is optimised away. Included before every file of llama.cpp by `make llama-native`.
#pragma once
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])(config)))
