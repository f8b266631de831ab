/* Products of few bfloat16 rows with packed matrices, without unpacking: the rows become whole numbers of 16 bits, which
 * AVX-512 VNNI multiplies with codes of 4 to 8 bits.
 *
 * A row has a factor for each span of 64 columns: its largest size there becomes 32639. The sum of one (row, output) has
 * one order: 16 lanes; in each the exact sum of 4 products of a span, times the row's factor and the scale of the group,
 * added to those before in a strip of K_BLOCK; then lanes; then strips. What is lost of a row's value is at most 2^-16 of
 * the largest in its span; values of weights are not rounded to 16 bits, as those are that are unpacked.
 */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define FLOAT_OF_HALF(bits) _cvtsh_ss(bits)
#define HALF_OF_FLOAT(value) _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)
#include "common.inc"
#include "codes.inc"
#include "scales512.inc"

#define GROUP 32
#define SPAN 64                          /* columns that are multiplied at a time */
#define STRIP_GROUPS (K_BLOCK / GROUP)
#define LARGEST 32639.0f                 /* both of its bytes are 127 */

/* A span of a row: high and low bytes in the order of a format's codes, and sums of four neighbours each, as whole
 * numbers and as floats. Rows follow each other; their floats lie behind them. */
struct span {
    int8_t high[SPAN], low[SPAN];
    int32_t sums[16];
    float float_sums[16];
    float factor, unused[15];
};

static int64_t spans_of(int64_t k) { return (k + SPAN - 1) / SPAN; }
static int64_t dots_padded(int64_t k) { return k; }
static int64_t dots_bytes(int64_t k) { return DOT_ROWS * (spans_of(k) * (int64_t)sizeof(struct span) + 4 * (k + TILE)); }
static struct span *spans_at(void *block, int64_t k, int64_t row) { return (struct span *)block + row * spans_of(k); }
static float *floats_at(void *block, int64_t k, int64_t row) {
    return (float *)spans_at(block, k, DOT_ROWS) + row * (k + TILE);
}

static void put_values(int dtype, const float *values, int64_t rows, int64_t at, int64_t k, void *packed) {
    (void)dtype;
    for (int64_t row = 0; row < rows; row++) memcpy(floats_at(packed, k, row) + at, values + row * TILE, TILE * 4);
}

enum order { EVENS_FIRST, HALVES_FIRST, NATURAL };

static inline __m512i ordered(const int order, __m512i bytes) {
    const __m512i evens = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0f0d0b0907050301, 0x0e0c0a0806040200));
    const __m512i places = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    if (order == HALVES_FIRST) return _mm512_shuffle_i32x4(bytes, bytes, 0xd8);
    if (order == EVENS_FIRST) return _mm512_permutexvar_epi64(places, _mm512_shuffle_epi8(bytes, evens));
    return bytes;
}

/* The largest size of 64 values; no number if one is not finite. */
static inline float largest_of(const float *values) {
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < SPAN; i += 16) {
        __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(values + i));
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    float size = float_of_bits((uint32_t)_mm512_reduce_max_epi32(largest));
    return size <= 0x1.fffffep127f ? size : NAN;
}

/* Makes whole numbers of a span of a row. */
static inline __attribute__((always_inline)) void make_span(const int order, const float *values, struct span *span) {
    const float size = largest_of(values);
    const __m512 inverse = _mm512_set1_ps(size > 0x1p-100f ? LARGEST / size : 0);
    __m512i high = _mm512_setzero_si512(), low = high;
    __m128i highs[4], lows[4];
    for (int i = 0; i < 4; i++) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + 16 * i), inverse));
        __m512i least = _mm512_srai_epi32(_mm512_slli_epi32(whole, 24), 24);
        lows[i] = _mm512_cvtepi32_epi8(whole);
        highs[i] = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_sub_epi32(whole, least), 8));
    }
    memcpy(&high, highs, 64), memcpy(&low, lows, 64);
    high = ordered(order, high), low = ordered(order, low);
    __m512i ones = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
    __m512i sums = _mm512_slli_epi32(_mm512_dpbusd_epi32(zero, ones, high), 8);
    sums = _mm512_dpbusd_epi32(sums, ones, low);
    span->factor = size / LARGEST;
    _mm512_storeu_si512(span->high, high), _mm512_storeu_si512(span->low, low), _mm512_storeu_si512(span->sums, sums);
    _mm512_storeu_ps(span->float_sums, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(span->factor)));
}

static inline __attribute__((always_inline)) void
settle(const int order, int64_t rows, int64_t k, void *block) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < spans_of(k); i++)
            make_span(order, floats_at(block, k, row) + i * SPAN, spans_at(block, k, row) + i);
}

static inline __attribute__((always_inline)) void
pack(const int order, const void *x, int64_t stride, int64_t rows, int64_t k, void *block) {
    for (int64_t row = 0; row < rows; row++) {
        const uint16_t *from = (const uint16_t *)x + row * stride;
        float *values = floats_at(block, k, row);
        for (int64_t i = 0; i < k; i += 16) {
            __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + i)));
            _mm512_storeu_si512(values + i, _mm512_slli_epi32(wide, 16));
        }
    }
    settle(order, rows, k, block);
}

enum kind { PAIRS, PAIRS_SHIFTED, PAIRS_TABLE, SIXTEENS, HALVES, HALVES_TABLE, FIVE, BYTES, BYTES_SHIFTED, BYTE_BLOCKS, K_FOUR, K_FIVE, K_SIX };

#define IS_GRID(kind) (kind <= SIXTEENS || kind == BYTES || kind == BYTES_SHIFTED)
#define IS_SHIFTED(kind) (kind == PAIRS_SHIFTED || kind == BYTES_SHIFTED || kind == K_FOUR || kind == K_FIVE)

/* How the codes of a matrix are read: what is the same for all rows. */
struct reading {
    const struct packed *matrix;
    __m512i table;        /* values of codes, plus `middle` */
    __m512i scale_of;     /* group -> its scale among those of a strip */
    int64_t stride, skip; /* bytes from block to block (span to span, if the codes lie alone), and before a block's codes */
    int64_t block;        /* columns of a block */
    int64_t scales;       /* of a strip, in the grid */
    int32_t middle;       /* a code is its value plus this */
    float unit;           /* of values */
};

static inline int kind_of(const struct packed *m) {
    switch (m->format) {
    case FLOAT4: return m->group_columns == 16 ? SIXTEENS : PAIRS_TABLE;
    case INT4: return m->zeros ? PAIRS_SHIFTED : PAIRS;
    case INT8: return m->zeros ? BYTES_SHIFTED : BYTES;
    case Q4_0: return HALVES;
    case Q5_0: return FIVE;
    case Q8_0: return BYTE_BLOCKS;
    case Q4_K: return K_FOUR;
    case Q5_K: return K_FIVE;
    case Q6_K: return K_SIX;
    default: return HALVES_TABLE;
    }
}

static struct reading reading_of(const struct packed *m) {
    static const struct reading readings[] = {
        [FLOAT4] = {.stride = 32, .block = SPAN, .middle = 12, .unit = 0.5f},
        [INT4] = {.stride = 32, .block = SPAN, .middle = 8, .unit = 1},
        [INT8] = {.stride = 64, .block = SPAN, .middle = 128, .unit = 1},
        [Q4_0] = {.stride = 18, .skip = 2, .block = 32, .middle = 8, .unit = 1},
        [Q5_0] = {.stride = 22, .skip = 6, .block = 32, .middle = 16, .unit = 1},
        [Q8_0] = {.stride = 34, .skip = 2, .block = 32, .middle = 128, .unit = 1},
        [Q4_K] = {.stride = 144, .skip = 16, .block = 256, .middle = 0, .unit = 1},
        [Q5_K] = {.stride = 176, .skip = 48, .block = 256, .middle = 0, .unit = 1},
        [Q6_K] = {.stride = 210, .skip = 0, .block = 256, .middle = 32, .unit = 1},
        [IQ4_NL] = {.stride = 18, .skip = 2, .block = 32, .middle = 128, .unit = 1},
        [MXFP4] = {.stride = 17, .skip = 1, .block = 32, .middle = 12, .unit = 1},
    };
    struct reading r = readings[m->format];
    const float *meaning = m->format == IQ4_NL ? IQ4_NL_VALUES : MXFP4_VALUES;
    int64_t length = m->group_columns < K_BLOCK ? m->group_columns : K_BLOCK, groups = length / GROUP;
    int32_t scale_of[16];
    uint8_t table[16];
    for (int i = 0; i < 16; i++) {
        scale_of[i] = groups ? (int32_t)(i / groups) : i;
        table[i] = (uint8_t)((int)meaning[i] + r.middle);
    }
    r.matrix = m;
    r.table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    r.scale_of = _mm512_loadu_si512(scale_of);
    r.scales = m->format <= INT8 ? K_BLOCK / length : 0;
    return r;
}

static inline __m512i nibbles(__m512i bytes) {
    const __m512i shifts = _mm512_set_epi64(0x4000400040004, 0x4000400040004, 0x4000400040004, 0x4000400040004, 0, 0, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi16(bytes, shifts), _mm512_set1_epi8(15));
}

static inline __m512i both_halves(const uint8_t *from) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)from));
}

/* 64 codes of two blocks of 32, 16 bytes each. */
static inline __m512i two_blocks(const uint8_t *first, int64_t stride) {
    __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)first));
    bytes = _mm512_mask_broadcast_i32x4(bytes, 0xf0f0, _mm_loadu_si128((const __m128i *)(first + stride)));
    return nibbles(bytes);
}

static inline uint32_t word_at(const uint8_t *from) {
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

static inline __attribute__((always_inline)) __m512i
k_codes(const int kind, const struct reading *r, const uint8_t *block, int64_t span) {
    if (kind == K_SIX) {
        const __m512i low_shifts = _mm512_set1_epi16((short)(span % 2 * 4));
        const __m512i high_shifts = _mm512_inserti64x4(_mm512_set1_epi16((short)(span % 2 * 4)),
                                                       _mm256_set1_epi16((short)(span % 2 * 4 + 2)), 1);
        __m512i low = _mm512_srlv_epi16(_mm512_loadu_si512(block + span / 2 * 64), low_shifts);
        __m512i high = _mm512_srlv_epi16(both_halves(block + 128 + span / 2 * 32), high_shifts);
        high = _mm512_and_si512(_mm512_slli_epi16(high, 4), _mm512_set1_epi8(48));
        return _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi8(15)), high);
    }
    __m512i codes = nibbles(both_halves(block + r->skip + span * 32));
    if (kind == K_FOUR) return codes;
    __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << 2 * span)), _mm256_set1_epi8((char)(2 << 2 * span)), 1);
    return _mm512_mask_add_epi8(codes, _mm512_test_epi8_mask(both_halves(block + 16), bit), codes, _mm512_set1_epi8(16));
}

/* The 64 codes of a span, of a row's codes from the strip on. */
static inline __attribute__((always_inline)) __m512i
codes_of(const int kind, const struct reading *r, const uint8_t *row, int64_t span) {
    if (kind >= K_FOUR) return k_codes(kind, r, row + span / 4 * r->stride, span % 4);
    if (kind == BYTES || kind == BYTES_SHIFTED)
        return _mm512_xor_si512(_mm512_loadu_si512(row + span * 64), _mm512_set1_epi8((char)0x80));
    if (kind <= SIXTEENS) {
        __m512i codes = nibbles(both_halves(row + span * 32));
        return kind >= PAIRS_TABLE ? _mm512_shuffle_epi8(r->table, codes) : codes;
    }
    const uint8_t *first = row + 2 * span * r->stride + r->skip;
    if (kind == BYTE_BLOCKS) {
        __m512i bytes = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)first));
        bytes = _mm512_inserti64x4(bytes, _mm256_loadu_si256((const __m256i *)(first + r->stride)), 1);
        return _mm512_xor_si512(bytes, _mm512_set1_epi8((char)0x80));
    }
    __m512i codes = two_blocks(first, r->stride);
    if (kind == HALVES_TABLE) return _mm512_shuffle_epi8(r->table, codes);
    if (kind != FIVE) return codes;
    uint64_t one = word_at(first - 4), two = word_at(first - 4 + r->stride);
    uint64_t bits = (one & 0xffff) | (two & 0xffff) << 16 | (one >> 16) << 32 | (two >> 16) << 48;
    return _mm512_mask_add_epi8(codes, bits, codes, _mm512_set1_epi8(16));
}

/* Scales of the groups of a strip of a row that lie beside the codes, and what a zero point adds to each sum. */
static inline __attribute__((always_inline)) void
grid_scales(const int kind, const struct reading *r, int64_t row, int64_t at, float *factors, float *offsets) {
    const struct packed *m = r->matrix;
    int64_t in_row = column_groups(m), before = at / m->group_columns, first = row / m->group_rows * in_row + before;
    int64_t count = in_row - before < r->scales ? in_row - before : r->scales;
    for (int64_t i = 0; i < count; i += 16) {
        int64_t some = count - i < 16 ? count - i : 16;
        __m512 scales = load_scales(m->scale_type, m->scales, first + i, some);
        if (m->tensor_scale) scales = _mm512_div_ps(scales, _mm512_set1_ps(m->tensor_scale[row * m->parts / m->rows]));
        if (m->format == FLOAT4) scales = _mm512_mul_ps(scales, _mm512_set1_ps(r->unit));
        if (kind != SIXTEENS) scales = _mm512_permutexvar_ps(r->scale_of, scales);
        _mm512_storeu_ps(factors + i, scales);
        if (!IS_SHIFTED(kind)) continue;
        __m128i stored = _mm_maskz_loadu_epi8((__mmask16)((1u << some) - 1), m->zeros + first + i);
        __m512i zeros = kind == BYTES_SHIFTED ? _mm512_cvtepi8_epi32(stored) : _mm512_cvtepu8_epi32(stored);
        __m512i shifts = _mm512_sub_epi32(_mm512_set1_epi32(kind == BYTES_SHIFTED ? 0 : r->middle), zeros);
        shifts = _mm512_permutexvar_epi32(r->scale_of, shifts);
        _mm512_storeu_ps(offsets, _mm512_mul_ps(_mm512_cvtepi32_ps(shifts), scales));
    }
}

/* The same of blocks that hold their own, `codes`: those of the row from the strip on. */
static inline __attribute__((always_inline)) void
held_scales(const int kind, const struct reading *r, const uint8_t *codes, int64_t groups, float *factors,
            float *offsets) {
    for (int64_t i = 0; i < groups && kind == K_SIX; i += 8) {
        const uint8_t *block = codes + i / 8 * r->stride;
        __m512i scales = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(block + 192)));
        __m512 factor = _mm512_set1_ps(FLOAT_OF_HALF(half_bits(block + 208)));
        _mm512_storeu_ps(factors + 2 * i, _mm512_mul_ps(factor, _mm512_cvtepi32_ps(scales)));
    }
    for (int64_t i = 0; i < groups && (kind == K_FOUR || kind == K_FIVE); i += 8) {
        __m512 both = k_scales(codes + i / 8 * r->stride);
        _mm256_storeu_ps(factors + i, _mm512_castps512_ps256(both));
        _mm256_storeu_ps(offsets + i, _mm256_sub_ps(_mm256_setzero_ps(), _mm512_extractf32x8_ps(both, 1)));
    }
    if (kind >= K_FOUR) return;
    if (r->matrix->format == MXFP4) { /* half_of_exponent */
        uint8_t exponents[STRIP_GROUPS] = {0};
        for (int64_t i = 0; i < groups; i++) exponents[i] = codes[i * r->stride];
        __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)exponents));
        __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
        __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        bits = _mm512_mask_sllv_epi32(bits, small, _mm512_set1_epi32(0x00200000), e);
        _mm512_storeu_ps(factors, _mm512_castsi512_ps(bits));
        return;
    }
    uint16_t halves[STRIP_GROUPS] = {0};
    for (int64_t i = 0; i < groups; i++) memcpy(halves + i, codes + i * r->stride, 2);
    _mm512_storeu_ps(factors, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves)));
}

/* The scale of each lane of a span. */
static inline __attribute__((always_inline)) __m512 lanes_of(const int kind, const float *factors, int64_t span) {
    if (kind == SIXTEENS || kind == K_SIX) {
        const __m512i sixteens = _mm512_set_epi32(3, 3, 2, 2, 1, 1, 0, 0, 3, 3, 2, 2, 1, 1, 0, 0);
        const __m512i k_six = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(factors + 4 * span));
        return _mm512_permutevar_ps(four, kind == K_SIX ? k_six : sixteens);
    }
    const __mmask16 second = kind >= BYTES ? 0xff00 : 0xf0f0;
    return _mm512_mask_mov_ps(_mm512_set1_ps(factors[2 * span]), second, _mm512_set1_ps(factors[2 * span + 1]));
}

/* Adds to sums[row * TILE + output] the products of a strip: R rows, O outputs. `rows`: the spans of the first row,
 * `shifts`: what `middle` adds to each lane of the spans of a row, too much. `length`: spans of a row. */
static inline __attribute__((always_inline)) void
dot_strip(const int kind, const int R, const int O, const struct reading *r, int64_t out, int64_t at, int64_t spans,
          const struct span *rows, int64_t length, const __m512i *shifts, float *sums) {
    float factors[4][2 * STRIP_GROUPS], offsets[4][STRIP_GROUPS];
    const struct packed *m = r->matrix;
    const uint8_t *codes = m->codes + out * m->row_bytes + at / r->block * r->stride;
    const int64_t ahead = r->stride * SPAN / r->block;
    __m512 total[4][DOT_ROWS];
#pragma GCC unroll 4
    for (int o = 0; o < O; o++) {
        if (IS_GRID(kind)) grid_scales(kind, r, out + o, at, factors[o], offsets[o]);
        else held_scales(kind, r, codes + o * m->row_bytes, 2 * spans, factors[o], offsets[o]);
#pragma GCC unroll 4
        for (int c = 0; c < R; c++) total[o][c] = _mm512_setzero_ps();
    }
    for (int64_t span = 0; span < spans; span++) {
#pragma GCC unroll 4
        for (int o = 0; o < O; o++) {
            const __m512i values = codes_of(kind, r, codes + o * m->row_bytes, span);
            const __m512 scale = lanes_of(kind, factors[o], span);
            __builtin_prefetch(codes + (o + 4) * m->row_bytes + span * ahead);
#pragma GCC unroll 4
            for (int c = 0; c < R; c++) {
                const struct span *row = &rows[c * length + span];
                __m512i product = _mm512_dpbusd_epi32(_mm512_setzero_si512(), values, _mm512_loadu_si512(row->high));
                product = _mm512_dpbusd_epi32(_mm512_slli_epi32(product, 8), values, _mm512_loadu_si512(row->low));
                if (kind != K_FOUR && kind != K_FIVE)
                    product = _mm512_sub_epi32(product, shifts[c * length + span]);
                __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(row->factor));
                total[o][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), factor, total[o][c]);
                if (IS_SHIFTED(kind))
                    total[o][c] = _mm512_fmadd_ps(_mm512_loadu_ps(row->float_sums), lanes_of(kind, offsets[o], span),
                                                  total[o][c]);
            }
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < R; c++)
#pragma GCC unroll 4
        for (int o = 0; o < O; o++)
            sums[c * TILE + o] += _mm512_reduce_add_ps(total[o][c]);
}

static inline __attribute__((always_inline)) void
dot_rows(const int kind, const int R, const struct reading *r, int64_t first, int64_t outs, const struct span *rows,
         const __m512i *shifts, float *sums) {
    const int64_t k = r->matrix->columns, length = spans_of(k);
    for (int64_t o = 0; o < outs; o += outs - o < 4 ? 1 : 4)
        for (int64_t from = 0; from < k; from += K_BLOCK) {
            int64_t at = from / SPAN, spans = (k - from < K_BLOCK ? k - from : K_BLOCK) / SPAN;
            if (outs - o >= 4) {
                dot_strip(kind, R, 4, r, first + o, from, spans, rows + at, length, shifts + at, sums + o);
                continue;
            }
            for (int c = 0; c < R; c++)
                dot_strip(kind, 1, 1, r, first + o, from, spans, rows + c * length + at, length,
                          shifts + c * length + at, sums + c * TILE + o);
        }
}

#define DOT_KIND(kind)                                                                                              \
    static __attribute__((noinline)) void dot_##kind(const struct reading *r, int64_t first, int64_t outs,           \
                                                     const struct span *rows, int64_t count, const __m512i *shifts,  \
                                                     float *sums) {                                                  \
        if (count >= 4) {                                                                                            \
            dot_rows(kind, 4, r, first, outs, rows, shifts, sums);                                                   \
            return;                                                                                                  \
        }                                                                                                            \
        if (count >= 2) dot_rows(kind, 2, r, first, outs, rows, shifts, sums);                                       \
        int64_t row = count & 2;                                                                                     \
        if (count & 1)                                                                                               \
            dot_rows(kind, 1, r, first, outs, rows + row * spans_of(r->matrix->columns),                             \
                     shifts + row * spans_of(r->matrix->columns), sums + row * TILE);                                \
    }
DOT_KIND(PAIRS)
DOT_KIND(PAIRS_SHIFTED)
DOT_KIND(PAIRS_TABLE)
DOT_KIND(SIXTEENS)
DOT_KIND(HALVES)
DOT_KIND(HALVES_TABLE)
DOT_KIND(FIVE)
DOT_KIND(BYTES)
DOT_KIND(BYTES_SHIFTED)
DOT_KIND(BYTE_BLOCKS)
DOT_KIND(K_FOUR)
DOT_KIND(K_FIVE)
DOT_KIND(K_SIX)

static void packed_dots(const struct packed *m, int64_t first, int64_t outs, const void *block, int64_t rows,
                        void *scratch, float *sums) {
    static void (*const dots[])(const struct reading *, int64_t, int64_t, const struct span *, int64_t, const __m512i *,
                                float *) = {dot_PAIRS, dot_PAIRS_SHIFTED, dot_PAIRS_TABLE, dot_SIXTEENS, dot_HALVES,
                                            dot_HALVES_TABLE, dot_FIVE, dot_BYTES, dot_BYTES_SHIFTED, dot_BYTE_BLOCKS,
                                            dot_K_FOUR, dot_K_FIVE, dot_K_SIX};
    const struct reading r = reading_of(m);
    const struct span *spans = block;
    __m512i *shifts = scratch;
    for (int64_t row = 0; row < rows; row++) memset(sums + row * TILE, 0, outs * sizeof *sums);
    for (int64_t i = 0; i < rows * spans_of(m->columns); i++)
        shifts[i] = _mm512_mullo_epi32(_mm512_loadu_si512(spans[i].sums), _mm512_set1_epi32(r.middle));
    dots[kind_of(m)](&r, first, outs, spans, rows, shifts, sums);
}

static void nothing(void) {}

#define WAY(order)                                                                                                  \
    static void pack_##order(int dtype, const void *x, int64_t stride, int64_t rows, int64_t k, void *block) {       \
        (void)dtype;                                                                                                 \
        pack(order, x, stride, rows, k, block);                                                                      \
    }                                                                                                                \
    static void settle_##order(int64_t rows, int64_t k, void *block) { settle(order, rows, k, block); }              \
    static const struct variant way_##order = {"",      NULL,    0,          dots_padded,   dots_bytes, pack_##order, NULL, \
                                               nothing, nothing, store_rows, activate_rows, NULL,       NULL,        \
                                               packed_dots, settle_##order};
WAY(EVENS_FIRST)
WAY(HALVES_FIRST)
WAY(NATURAL)

/* Returns the way for few bfloat16 rows with a matrix, NULL: it has to be unpacked. */
const struct variant *expertflow_dots512(const struct packed *m) {
    int64_t length = m->group_columns < m->columns ? m->group_columns : m->columns;
    if (m->format == FLOAT8 || m->columns % SPAN || m->order) return NULL;
    if (m->format > INT8)
        return m->format >= Q8_0 && m->format <= Q6_K ? &way_NATURAL : &way_HALVES_FIRST;
    if (length % GROUP && !(m->format == FLOAT4 && length == 16)) return NULL;
    if (length < m->columns && K_BLOCK % length && length % K_BLOCK) return NULL;
    return m->format == INT8 ? &way_NATURAL : &way_EVENS_FIRST;
}

/* Returns whether the CPU has the instructions. */
int expertflow_takes_dots512(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif
