// Plain C++: the compiler's baseline (SSE2 on x86-64, NEON on ARM64). 16 registers.
#define R21D_ISA kIsaGeneric
#define R21D_ISA_NAME "generic"
#define R21D_LANES 4
#define R21D_MAX_PIXELS 4
#define R21D_PAIRS 0
#include "cpu/kernels.inl"
