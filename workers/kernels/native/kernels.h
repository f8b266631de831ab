/* Products of few rows with big weights: y[n, out] = x[n, in] W[out, in]^T + b, for many weights in one call.
 *
 * A variant is one instruction set's way to do it. Its `tile` multiplies TILE rows of a weight with all rows of a
 * segment; what comes before (pack the rows) and after (bias, activation, rounding) is common text, compiled for
 * every variant. The sum over `in` of one (row, output) has one order, whatever else the call holds.
 */
#ifndef EXPERTFLOW_KERNELS_H
#define EXPERTFLOW_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { DTYPE_FLOAT32, DTYPE_BFLOAT16, DTYPE_FLOAT16 };
enum { ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_RELU, ACT_RELU_SQUARED };

#define UNPACK_ROWS 16   /* packed rows of a weight that are unpacked for one `tile` call: they stay in the nearest cache */
#define TILE 32          /* rows of a weight that one `tile` call multiplies */
#define ROW_BLOCK 16     /* rows that are packed together */
#define PASS_ROWS 256    /* rows of a segment that one `tile` call takes at most; a multiple of ROW_BLOCK */
#define BATCH_ROWS 2048  /* rows that are packed at a time */
#define DOT_ROWS 4       /* rows that are multiplied with packed matrices without unpacking, at most */
#define K_BLOCK 512      /* elements of `in` after which lanes are summed */

enum { FLOAT8, FLOAT4, INT4, INT8, Q4_0, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, MXFP4 }; /* formats of packed matrices */
enum { SCALE_FLOAT32, SCALE_FLOAT16, SCALE_BFLOAT16, SCALE_FLOAT8, SCALE_EXPONENT };

typedef void (*parallel_fn)(void (*body)(void *), void *data, unsigned threads, unsigned flags); /* GOMP_parallel */

/* A matrix [rows, columns] as it is stored: workers/packed/packing.py says what its codes mean. */
struct packed {
    int32_t format, scale_type;
    int64_t rows, columns, row_bytes;   /* row_bytes: of codes */
    int64_t group_rows, group_columns;  /* that one scale covers */
    int64_t parts, order_parts;         /* tensor scales and orders, each for its share of the rows */
    const uint8_t *codes, *scales;
    const uint8_t *zeros;               /* NULL: symmetric */
    const float *tensor_scale;          /* NULL, or divides the scales */
    const int32_t *order;               /* NULL, or the group of each column, part by part */
};

/* Experts (or single products) over segments: rows [first[i], last[i]) go through weights i. Strides in elements. */
struct job {
    int32_t dtype, activation, gated, segments, threads, reserved;
    int64_t width, inner, out;        /* experts: width in and out; products: `width` in, `out` out */
    const void *const *first_weight;  /* [2 inner or inner, width]; products: [out, width] */
    const void *const *first_bias;    /* NULL, or one vector a segment */
    const void *const *down_weight;   /* [width, inner]; NULL: products */
    const void *const *down_bias;
    const struct packed *const *first_packed; /* NULL, or for each segment the packed weight, NULL: a dense one */
    const struct packed *const *down_packed;
    const int64_t *first, *last;
    const void *x;                    /* [rows, width], contiguous rows */
    void *y;
    int64_t x_stride, y_stride;
    parallel_fn parallel;
};

/* Rows packed for `tile`: blocks of ROW_BLOCK rows, zeros up to `padded` elements a row. */
struct variant {
    const char *name;
    int (*usable)(void);
    int takes_float32_and_float16;
    int64_t (*padded)(int64_t k);
    int64_t (*block_bytes)(int64_t k);
    void (*pack)(int dtype, const void *x, int64_t stride, int64_t rows, int64_t k, void *block);
    /* sums[row * TILE + o] for o < outs and row < rows (at most PASS_ROWS); weights begin at row 0 of the tile */
    void (*tile)(int dtype, const void *weight, int64_t k, int64_t outs, const void *packed, int64_t rows, float *sums);
    void (*begin)(void); /* once a task, on its thread */
    void (*end)(void);
    /* bias, then rounding to y[row * stride + o] */
    void (*store)(int dtype, float *sums, int64_t rows, int64_t outs, const void *bias, void *y, int64_t stride);
    /* activation(gate) * up (or activation(gate)), packed as elements [at, at + outs) of rows of length k */
    void (*activate)(int dtype, int activation, float *gate, float *up, int64_t rows, int64_t outs,
                     const void *gate_bias, const void *up_bias, int64_t at, int64_t k, void *packed);
    /* rows [first, first + count) of a packed matrix, as dense rows of this type */
    void (*unpack)(int dtype, const struct packed *matrix, int64_t first, int64_t count, void *into);
    /* NULL, or returns the way in which up to DOT_ROWS bfloat16 rows go through a packed matrix, if there is another */
    const struct variant *(*few)(const struct packed *matrix);
    /* of such a way: as `tile`, for rows [first, first + outs) of a matrix as it is stored; `scratch`: 8 bytes for each
     * column */
    void (*dots)(const struct packed *matrix, int64_t first, int64_t outs, const void *packed, int64_t rows, void *scratch,
                 float *sums);
    /* of such a way: after all of a block was put by `activate` */
    void (*settle)(int64_t rows, int64_t k, void *block);
};

extern const struct variant variant_avx2, variant_avx512, variant_avx512_bf16, variant_amx, variant_neon;
/* the same, but few rows with packed matrices by `dots` */
extern const struct variant variant_amx_dots, variant_avx512_bf16_dots, variant_avx512_dots;
const struct variant *expertflow_dots512(const struct packed *matrix);
int expertflow_takes_dots512(void);

#endif
