// AVX-512 (F, BW, DQ, VL): 32 registers of 16; 8 x 3 accumulators, 3 of b and the broadcast.
#define R21D_ISA kIsaAvx512
#define R21D_ISA_NAME "avx512"
#define R21D_LANES 16
#define R21D_MAX_PIXELS 8
#define R21D_PAIRS 0
#include "cpu/kernels.inl"
