/* AVX-512 (F, BW, VL, DQ): weights widened to float32, like AVX2 at twice the width. */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define FLOAT_OF_HALF(bits) _cvtsh_ss(bits)
#define HALF_OF_FLOAT(value) _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)
#include "common.inc"
#include "unpack.inc"
#include "unpack512.inc"

#define LANES 16
#define VECTOR __m512
#define ZERO _mm512_setzero_ps()
#define FUSED _mm512_fmadd_ps
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define STREAM_COLUMNS 6
#define MOST_COLUMNS 6
#define OUTS_OF(columns) 4
static inline __m512 WIDEN(int dtype, const char *from, int part) {
    if (dtype == DTYPE_FLOAT32) return LOAD((const float *)from + part * LANES);
    if (dtype == DTYPE_FLOAT16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from + part));
    __m512i pairs = _mm512_loadu_si512((const void *)from);
    if (part == 0) return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}
static inline __m128 quarters(__m512 v) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#define SUM_4(into, a, b, c, d) \
    _mm_storeu_ps(into, _mm_hadd_ps(_mm_hadd_ps(quarters(a), quarters(b)), _mm_hadd_ps(quarters(c), quarters(d))))
#include "float_dot.inc"

static int usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const struct variant variant_avx512 = {"avx512",  usable,   1,       padded,  block_bytes, pack_rows,
                                       float_tile, nothing, nothing, store_rows, activate_rows, unpack_fast,
                                       NULL,      NULL,    NULL};

static int usable_with_dots(void) { return usable() && expertflow_takes_dots512(); }

const struct variant variant_avx512_dots = {"avx512_dots", usable_with_dots,  1,       padded,     block_bytes,   pack_rows,
                                            float_tile,    nothing, nothing, store_rows, activate_rows, unpack_fast,
                                            expertflow_dots512, NULL, NULL};
#endif
