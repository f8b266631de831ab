/* AMX: tiles of 16 rows of a weight, which lie as the unit wants them, times packed rows.
 *
 * Rows are packed in blocks of 16, element pairs of all rows side by side: [k / 2][16][2] (Intel's manual, TDPBF16PS).
 */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#define FLOAT_OF_HALF(bits) _cvtsh_ss(bits)
#define HALF_OF_FLOAT(value) _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)
#include "common.inc"
#include "unpack.inc"
#define HAS_BFLOAT16
#include "unpack512.inc"

/* GCC 12 does not tell its optimiser that tile loads read memory. */
#define WRITTEN(memory) __asm__ volatile("" : : "r"(memory) : "memory")

#define STEP 32 /* elements of `in` that one tile instruction takes */
#define AT_ONCE 3 /* blocks of rows times two of the weight: their sums take 6 of 8 tiles */

static int64_t padded(int64_t k) { return (k + STEP - 1) / STEP * STEP; }
static int64_t block_bytes(int64_t k) { return padded(k) * ROW_BLOCK * 2; }

/* 16 distances of `step` bytes, for gathers and scatters. */
static inline __m512i distances(int64_t step) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)step));
}

static void pack_rows(int dtype, const void *x, int64_t stride, int64_t rows, int64_t k, void *block) {
    uint16_t *into = block;
    const uint16_t *from = x;
    const __m512i row_distances = distances(stride * 2);
    const __mmask16 present = (__mmask16)((1u << rows) - 1);
    (void)dtype;
    memset(into + k / 2 * 2 * ROW_BLOCK, 0, (padded(k) - k / 2 * 2) * ROW_BLOCK * 2);
    for (int64_t pair = 0; pair < k / 2; pair++)
        _mm512_storeu_si512(into + pair * ROW_BLOCK * 2,
                            _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), present, row_distances,
                                                        from + pair * 2, 1));
    if (k % 2)
        for (int64_t row = 0; row < rows; row++) into[(k / 2 * ROW_BLOCK + row) * 2] = from[row * stride + k - 1];
}

static void put_values(int dtype, const float *values, int64_t rows, int64_t at, int64_t k, void *packed) {
    const __m512i pair_distances = distances(ROW_BLOCK * 4);
    (void)dtype;
    for (int64_t row = 0; row < rows; row++) {
        const float *from = values + row * TILE;
        char *into = (char *)packed + row / ROW_BLOCK * block_bytes(k) + row % ROW_BLOCK * 4 + at / 2 * ROW_BLOCK * 4;
        __m512bh pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
        _mm512_i32scatter_epi32(into, pair_distances, (__m512i)pairs, 1); /* `at` + TILE is at most padded(k) */
    }
}

static void configure(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) shape = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) shape.row_bytes[tile] = 64, shape.rows[tile] = 16;
    WRITTEN(&shape);
    _tile_loadconfig(&shape);
}

static void release(void) { _tile_release(); }

/* number of the tile, half of the weight's rows, block of packed rows */
#define EACH_SUM(do) do(0, 0, 0) do(1, 0, 1) do(2, 0, 2) do(3, 1, 0) do(4, 1, 1) do(5, 1, 2)
#define CLEAR(sum, half, i) if (half < halves && i < blocks) _tile_zero(sum);
#define ADD(sum, half, i)                                                           \
    if (half < halves && i < blocks) {                                         \
        if (i == 0) _tile_loadd(6, half ? second : first, stored);             \
        _tile_loadd(7, packed + i * block_bytes(k) + at * ROW_BLOCK * 2, 64);  \
        _tile_dpbf16ps(sum, 6, 7);                              \
    }
#define KEEP(sum, half, i) if (half < halves && i < blocks) _tile_stored(sum, products[i][half * 16], 64);

static inline __attribute__((always_inline)) void
blocks_tile(const int halves, const int blocks, const char *weight, int64_t k, int64_t outs, const char *packed,
            float products[AT_ONCE][TILE][ROW_BLOCK]) {
    int64_t whole = outs == halves * 16 ? k / STEP * STEP : 0, stored = k * 2;
    EACH_SUM(CLEAR)
    for (int64_t at = 0; at < whole; at += STEP) {
        const char *first = weight + at * 2, *second = first + 16 * stored;
        EACH_SUM(ADD)
    }
    stored = STEP * 2;
    for (int64_t at = whole; at < k; at += STEP) { /* rows and elements that are not there are zero */
        uint16_t part[TILE][STEP] __attribute__((aligned(64))) = {{0}};
        int64_t count = k - at < STEP ? k - at : STEP;
        for (int64_t o = 0; o < outs; o++) memcpy(part[o], weight + (o * k + at) * 2, count * 2);
        WRITTEN(part);
        const uint16_t *first = part[0], *second = part[16];
        EACH_SUM(ADD)
    }
    EACH_SUM(KEEP)
}

#define BLOCKS(count)                                                                      \
    case count:                                                                            \
        if (outs > 16) blocks_tile(2, count, weight, k, outs, from, products);             \
        else blocks_tile(1, count, weight, k, outs, from, products);                       \
        break;

static void amx_tile(int dtype, const void *weight, int64_t k, int64_t outs, const void *packed, int64_t rows,
                     float *sums) {
    float products[AT_ONCE][TILE][ROW_BLOCK] __attribute__((aligned(64)));
    const __m512i out_distances = distances(ROW_BLOCK * 4);
    int64_t blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
    (void)dtype;
    for (int64_t block = 0; block < blocks; block += AT_ONCE) {
        const char *from = (const char *)packed + block * block_bytes(k);
        switch (blocks - block < AT_ONCE ? blocks - block : AT_ONCE) {
            BLOCKS(1)
            BLOCKS(2)
            BLOCKS(3)
        }
        for (int64_t row = block * ROW_BLOCK; row < rows && row < (block + AT_ONCE) * ROW_BLOCK; row++) {
            const float *column = &products[row / ROW_BLOCK - block][0][row % ROW_BLOCK];
            _mm512_storeu_ps(sums + row * TILE, _mm512_i32gather_ps(out_distances, column, 1));
            if (outs > 16)
                _mm512_storeu_ps(sums + row * TILE + 16, _mm512_i32gather_ps(out_distances, column + 256, 1));
        }
    }
}

#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM of arch_prctl: the kernel asks for it before first use */
#define TILE_DATA 18

static int usable(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512dq")) return 0;
    unsigned a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return 0; /* AMX-BF16, AMX-TILE */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

const struct variant variant_amx = {"amx",    usable,    0,       padded,  block_bytes, pack_rows,
                                    amx_tile, configure, release, store_rows, activate_rows, unpack_fast,
                                    NULL,     NULL,      NULL};

static int usable_with_dots(void) { return usable() && expertflow_takes_dots512(); }

const struct variant variant_amx_dots = {"amx_dots", usable_with_dots,    0,       padded,     block_bytes,   pack_rows,
                                         amx_tile,   configure, release, store_rows, activate_rows, unpack_fast,
                                         expertflow_dots512, NULL, NULL};
#endif
