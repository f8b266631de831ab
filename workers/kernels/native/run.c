/* Runs jobs: packs rows, hands tiles to the threads of the caller's OpenMP pool, picks the variant of this CPU. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

static const struct variant *const VARIANTS[] = {
#if defined(__x86_64__)
    &variant_amx, &variant_avx512_bf16, &variant_avx512, &variant_avx2,
#elif defined(__aarch64__)
    &variant_neon,
#endif
    NULL};

#define TASK_TILES 2 /* tiles of one weight that a thread takes at a time: 64 rows, mostly a run of memory */

enum phase { PACK, FIRST, DOWN };

/* Segments [begin, end) whose rows are packed at the same time. */
struct batch {
    const struct job *job;
    const struct variant *variant;
    enum phase phase;
    int64_t begin, end, tasks, next;
    const int64_t *low, *high;      /* rows of each segment of the batch */
    const int64_t *block;           /* first packed block of each segment */
    char *packed, *inner;
};

static int64_t blocks_of(int64_t rows) { return (rows + ROW_BLOCK - 1) / ROW_BLOCK; }
static int64_t bytes_of(int dtype) { return dtype == DTYPE_FLOAT32 ? 4 : 2; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static const char *at(const void *base, int dtype, int64_t elements) {
    return (const char *)base + elements * bytes_of(dtype);
}

static const void *vector_at(const void *const *vectors, int64_t i, int dtype, int64_t elements) {
    return vectors && vectors[i] ? at(vectors[i], dtype, elements) : NULL;
}

static int64_t outs_of(const struct batch *b) {
    const struct job *job = b->job;
    if (b->phase == DOWN) return job->width;
    return job->down_weight ? job->inner : job->out;
}

static void pack_block(const struct batch *b, int64_t segment, int64_t block) {
    const struct job *job = b->job;
    int64_t low = b->low[segment] + block * ROW_BLOCK, rows = smaller(b->high[segment] - low, ROW_BLOCK);
    char *into = b->packed + (b->block[segment] + block) * b->variant->block_bytes(job->width);
    b->variant->pack(job->dtype, at(job->x, job->dtype, low * job->x_stride), job->x_stride, rows, job->width, into);
}

static void first_tile(const struct batch *b, int64_t segment, int64_t out, int64_t outs, int64_t row, int64_t rows,
                       float *sums) {
    const struct job *job = b->job;
    const struct variant *v = b->variant;
    int64_t number = b->begin + segment, k = job->width, block = b->block[segment] + row / ROW_BLOCK;
    const void *weight = job->first_weight[number], *packed = b->packed + block * v->block_bytes(k);
    const void *bias = vector_at(job->first_bias, number, job->dtype, out);
    v->tile(job->dtype, at(weight, job->dtype, out * k), k, outs, packed, rows, sums);
    if (!job->down_weight) {
        char *y = (char *)at(job->y, job->dtype, (b->low[segment] + row) * job->y_stride + out);
        v->store(job->dtype, sums, rows, outs, bias, y, job->y_stride);
        return;
    }
    float *up = job->gated ? sums + PASS_ROWS * TILE : NULL;
    const void *up_bias = job->gated ? vector_at(job->first_bias, number, job->dtype, job->inner + out) : NULL;
    if (up) v->tile(job->dtype, at(weight, job->dtype, (job->inner + out) * k), k, outs, packed, rows, up);
    v->activate(job->dtype, job->activation, sums, up, rows, outs, bias, up_bias, out, job->inner,
                b->inner + block * v->block_bytes(job->inner));
}

static void down_tile(const struct batch *b, int64_t segment, int64_t out, int64_t outs, int64_t row, int64_t rows,
                      float *sums) {
    const struct job *job = b->job;
    const struct variant *v = b->variant;
    int64_t number = b->begin + segment, k = job->inner, block = b->block[segment] + row / ROW_BLOCK;
    char *y = (char *)at(job->y, job->dtype, (b->low[segment] + row) * job->y_stride + out);
    v->tile(job->dtype, at(job->down_weight[number], job->dtype, out * k), k, outs,
            b->inner + block * v->block_bytes(k), rows, sums);
    v->store(job->dtype, sums, rows, outs, vector_at(job->down_bias, number, job->dtype, out), y, job->y_stride);
}

static void tile_task(const struct batch *b, int64_t segment, int64_t task, float *sums) {
    int64_t outs = outs_of(b), end = smaller(outs, (task + 1) * TASK_TILES * TILE);
    int64_t total = b->high[segment] - b->low[segment];
    for (int64_t out = task * TASK_TILES * TILE; out < end; out += TILE)
        for (int64_t row = 0; row < total; row += PASS_ROWS)
            (b->phase == DOWN ? down_tile : first_tile)(b, segment, out, smaller(end - out, TILE), row,
                                                        smaller(total - row, PASS_ROWS), sums);
}

static void take_tasks(void *data) {
    struct batch *b = data;
    float sums[2 * PASS_ROWS * TILE] __attribute__((aligned(64)));
    int64_t per_segment = (outs_of(b) + TASK_TILES * TILE - 1) / (TASK_TILES * TILE), task, segment = 0;
    b->variant->begin();
    while ((task = __atomic_fetch_add(&b->next, 1, __ATOMIC_RELAXED)) < b->tasks) {
        if (b->phase == PACK) {
            while (segment + 1 < b->end - b->begin && b->block[segment + 1] <= task) segment++;
            pack_block(b, segment, task - b->block[segment]);
        } else {
            tile_task(b, task / per_segment, task % per_segment, sums);
        }
    }
    b->variant->end();
}

static void run_phase(struct batch *b, enum phase phase, int64_t tasks, int64_t least) {
    b->phase = phase, b->tasks = tasks, b->next = 0;
    if (tasks < least || b->job->threads < 2) {
        take_tasks(b);
    } else {
        b->job->parallel(take_tasks, b, b->job->threads, 0);
    }
}

static void run_batch(struct batch *b, int64_t blocks) {
    int64_t segments = b->end - b->begin, per_task = TASK_TILES * TILE;
    run_phase(b, PACK, blocks, 17); /* fewer blocks are packed sooner than a thread wakes */
    b->phase = FIRST;
    run_phase(b, FIRST, segments * ((outs_of(b) + per_task - 1) / per_task), 2);
    if (b->job->down_weight) run_phase(b, DOWN, segments * ((b->job->width + per_task - 1) / per_task), 2);
}

/* Returns the end of the batch that begins at segment `begin`, row `*row` of it, and fills its tables. */
static int64_t fill_batch(const struct job *job, int64_t begin, int64_t *row, int64_t *low, int64_t *high,
                          int64_t *block, int64_t *blocks) {
    int64_t used = 0, i = begin, count = 0;
    *blocks = 0;
    for (; i < job->segments && used < BATCH_ROWS; i++, count++) {
        low[count] = job->first[i] + *row;
        high[count] = smaller(job->last[i], low[count] + BATCH_ROWS - used);
        block[count] = *blocks;
        *blocks += blocks_of(high[count] - low[count]);
        used += high[count] - low[count];
        if (high[count] < job->last[i]) {
            *row += high[count] - low[count];
            return i;
        }
        *row = 0;
    }
    return i - 1;
}

/* Runs a job on a variant. Returns 0, or -1 if memory for packed rows is short. */
int expertflow_run(const struct job *job, int variant) {
    const struct variant *v = VARIANTS[variant];
    int64_t segments = job->segments, rows = 0;
    for (int64_t i = 0; i < segments; i++) rows += job->last[i] - job->first[i];
    int64_t most = segments + blocks_of(smaller(rows, BATCH_ROWS));
    int64_t *tables = malloc((3 * segments + 3) * sizeof *tables);
    char *packed = NULL, *inner = NULL;
    int failed = !tables || posix_memalign((void **)&packed, 64, most * v->block_bytes(job->width));
    if (!failed && job->down_weight) failed = posix_memalign((void **)&inner, 64, most * v->block_bytes(job->inner));
    int64_t *low = tables, *high = tables + segments + 1, *block = high + segments + 1;
    for (int64_t begin = 0, row = 0, blocks; !failed && begin < segments;) {
        int64_t last = fill_batch(job, begin, &row, low, high, block, &blocks);
        struct batch b = {job, v, PACK, begin, last + 1, 0, 0, low, high, block, packed, inner};
        run_batch(&b, blocks);
        begin = row ? last : last + 1;
    }
    free(tables), free(packed), free(inner);
    return failed ? -1 : 0;
}

/* Returns the name of variant i, NULL after the last; they are listed best first. */
const char *expertflow_variant(int i) { return VARIANTS[i] ? VARIANTS[i]->name : NULL; }

/* Returns whether this CPU runs variant i. */
int expertflow_usable(int i) { return VARIANTS[i]->usable(); }

/* Returns whether variant i multiplies values of this type. */
int expertflow_takes(int i, int dtype) { return dtype == DTYPE_BFLOAT16 || VARIANTS[i]->takes_float32_and_float16; }
