/* AVX-512 BF16: pairs of bfloat16 multiplied and added in one instruction; rows are packed as bfloat16, too.
 *
 * The instruction sums a pair with one rounding and takes denormals as zero (Intel's manual, VDPBF16PS). */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")
#define FLOAT_OF_HALF(bits) _cvtsh_ss(bits)
#define HALF_OF_FLOAT(value) _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)
#include "common.inc"
#include "unpack.inc"
#define HAS_BFLOAT16
#include "unpack512.inc"

#define LANES 16
#define VECTOR __m512
#define ZERO _mm512_setzero_ps()
#define STEP 32
#define PARTS 1
#define PACKED uint16_t
#define STREAM_COLUMNS 6
#define MOST_COLUMNS 6
#define OUTS_OF(columns) 4
#define LOAD_WEIGHT(dtype, from, part) _mm512_loadu_ps(from)
#define LOAD_ROW(from, part) _mm512_loadu_ps(from)
#define MULTIPLY_ADD(a, b, total) _mm512_dpbf16_ps(total, (__m512bh)(a), (__m512bh)(b))
#define PACK_STEP(dtype, from, into) _mm512_storeu_ps(into, _mm512_loadu_ps(from))

static inline int place(int dtype, int e) { return (void)dtype, e; }
static inline uint16_t packed_of(float value) { return bfloat16_of(value); }
static inline __m128 quarters(__m512 v) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#define SUM_4(into, a, b, c, d) \
    _mm_storeu_ps(into, _mm_hadd_ps(_mm_hadd_ps(quarters(a), quarters(b)), _mm_hadd_ps(quarters(c), quarters(d))))
#include "dot.inc"

TYPED_COLUMNS(pair_columns, DTYPE_BFLOAT16)

static void pair_tile(int dtype, const void *weight, int64_t k, int64_t outs, const void *packed, int64_t rows,
                      float *sums) {
    (void)dtype;
    dot_tile(pair_columns, 2, weight, k, outs, packed, rows, sums);
}

static int usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const struct variant variant_avx512_bf16 = {"avx512_bf16", usable,  0,       padded,  block_bytes, pack_rows,
                                            pair_tile, nothing, nothing, store_rows, activate_rows, unpack_fast,
                                            NULL, NULL, NULL};

static int usable_with_dots(void) { return usable() && expertflow_takes_dots512(); }

const struct variant variant_avx512_bf16_dots = {"avx512_bf16_dots", usable_with_dots, 0,          padded,
                                                 block_bytes,        pack_rows,        pair_tile,  nothing,
                                                 nothing,            store_rows,       activate_rows, unpack_fast,
                                                 expertflow_dots512, NULL,             NULL};
#endif
