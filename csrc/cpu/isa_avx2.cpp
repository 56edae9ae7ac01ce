// AVX2 and FMA: 16 registers of 8; 4 x 3 accumulators, 3 of b and the broadcast fill them.
#define R21D_ISA kIsaAvx2
#define R21D_ISA_NAME "avx2"
#define R21D_LANES 8
#define R21D_MAX_PIXELS 4
#define R21D_PAIRS 0
#include "cpu/kernels.inl"
