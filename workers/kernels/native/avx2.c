/* AVX2, FMA and F16C: x86-64 processors since 2013. */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#pragma GCC target("avx2,fma,f16c")
#define FLOAT_OF_HALF(bits) _cvtsh_ss(bits)
#define HALF_OF_FLOAT(value) _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)
#include "common.inc"
#include "unpack.inc"
#include "unpack256.inc"

#define LANES 8
#define VECTOR __m256
#define ZERO _mm256_setzero_ps()
#define FUSED _mm256_fmadd_ps
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define STREAM_COLUMNS 2
#define MOST_COLUMNS 6
#define OUTS_OF(columns) ((columns) <= 2 ? 4 : (columns) <= 4 ? 3 : 2)
static inline __m256 WIDEN(int dtype, const char *from, int part) {
    if (dtype == DTYPE_FLOAT32) return LOAD((const float *)from + part * LANES);
    if (dtype == DTYPE_FLOAT16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from + part));
    __m256i pairs = _mm256_loadu_si256((const __m256i *)from);
    if (part == 0) return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}
static inline __m128 halves(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
#define SUM_4(into, a, b, c, d) \
    _mm_storeu_ps(into, _mm_hadd_ps(_mm_hadd_ps(halves(a), halves(b)), _mm_hadd_ps(halves(c), halves(d))))
#include "float_dot.inc"

static int usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

const struct variant variant_avx2 = {"avx2",    usable,   1,       padded,  block_bytes, pack_rows,
                                     float_tile, nothing, nothing, store_rows, activate_rows, unpack_fast,
                                    NULL, NULL, NULL};
#endif
