/* Runs jobs: packs rows, hands tiles to the threads of the caller's OpenMP pool, picks the variant of this CPU. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

static const struct variant *const VARIANTS[] = {
#if defined(__x86_64__)
    &variant_amx, &variant_amx_dots, &variant_avx512_bf16, &variant_avx512_bf16_dots, &variant_avx512, &variant_avx512_dots, &variant_avx2,
#elif defined(__aarch64__)
    &variant_neon,
#endif
    NULL};

#define TASK_TILES 2 /* tiles of one weight that a thread takes at a time: 64 rows, mostly a run of memory */

enum phase { PACK, FIRST, SETTLE, DOWN };

/* Segments [begin, end) whose rows are packed at the same time. */
struct batch {
    const struct job *job;
    const struct variant *variant;
    enum phase phase;
    int64_t begin, end, tasks, next;
    const int64_t *low, *high;      /* rows of each segment of the batch */
    const int64_t *block;           /* first packed block of each segment */
    char *packed, *inner;
    char *scratch;                  /* for each thread room for unpacked rows of a weight; NULL: all are dense */
    int64_t scratch_bytes, threads; /* of one thread; threads that have taken theirs */
};

/* A weight [_, k] of the segment at hand, dense or packed. */
struct weight {
    const char *dense;
    const struct packed *packed;
    int64_t k;
};

/* What a thread works in: sums of two tiles, and rows that it unpacked for gate (or all) and up. */
struct room {
    float sums[2][PASS_ROWS * TILE] __attribute__((aligned(64)));
    char *unpacked[2];
    int64_t step; /* rows that are unpacked at a time */
    int is_kept;  /* the rows of this tile were unpacked for rows before */
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

static struct weight weight_of(const struct batch *b, int64_t segment, int is_down) {
    const struct job *job = b->job;
    int64_t number = b->begin + segment;
    const void *const *dense = is_down ? job->down_weight : job->first_weight;
    const struct packed *const *packed = is_down ? job->down_packed : job->first_packed;
    return (struct weight){dense[number], packed ? packed[number] : NULL, is_down ? job->inner : job->width};
}

/* The way in which the rows of a segment go through a weight of theirs, by their number and its packing alone. */
static const struct variant *way_of(const struct batch *b, int64_t segment, int is_down) {
    const struct job *job = b->job;
    const struct variant *v = b->variant;
    int64_t number = b->begin + segment;
    if (!v->few || job->dtype != DTYPE_BFLOAT16 || job->last[number] - job->first[number] > DOT_ROWS) return v;
    const struct weight weight = weight_of(b, segment, is_down);
    const struct variant *few = weight.packed ? v->few(weight.packed) : NULL;
    return few ? few : v;
}

/* Bytes of a block of packed rows of any way. */
static int64_t most_bytes(const struct variant *v, int64_t k) {
    return v->few ? (k + TILE) * ROW_BLOCK * 4 + DOT_ROWS * 8 * K_BLOCK : v->block_bytes(k);
}

/* Where a block of a segment lies among rows of length k that were packed for `way`. */
static char *block_at(const struct batch *b, char *packed, const struct variant *way, int64_t segment, int64_t block,
                      int64_t k) {
    return packed + b->block[segment] * most_bytes(b->variant, k) + block * way->block_bytes(k);
}

static void pack_block(const struct batch *b, int64_t segment, int64_t block) {
    const struct job *job = b->job;
    int64_t low = b->low[segment] + block * ROW_BLOCK, rows = smaller(b->high[segment] - low, ROW_BLOCK);
    const struct variant *way = way_of(b, segment, 0);
    char *into = block_at(b, b->packed, way, segment, block, job->width);
    way->pack(job->dtype, at(job->x, job->dtype, low * job->x_stride), job->x_stride, rows, job->width, into);
}

/* Rows [out, out + outs) of a weight, at most TILE, with packed rows: to the sums of gate (0) or up (1). */
static void multiply(const struct variant *v, int dtype, const struct weight *w, int64_t out, int64_t outs,
                     const char *packed, int64_t rows, struct room *room, int which) {
    if (w->packed && v->dots) {
        v->dots(w->packed, out, outs, packed, rows, room->unpacked[0], room->sums[which]);
        return;
    }
    if (!w->packed) {
        v->tile(dtype, at(w->dense, dtype, out * w->k), w->k, outs, packed, rows, room->sums[which]);
        return;
    }
    for (int64_t part = 0; part < outs; part += room->step) {
        int64_t count = smaller(outs - part, room->step);
        char *unpacked = room->unpacked[which];
        if (!room->is_kept) v->unpack(dtype, w->packed, out + part, count, unpacked);
        v->tile(dtype, unpacked, w->k, count, packed, rows, room->sums[which] + part);
    }
}

static void first_tile(const struct batch *b, int64_t segment, int64_t out, int64_t outs, int64_t row, int64_t rows,
                       struct room *room) {
    const struct job *job = b->job;
    const struct variant *v = way_of(b, segment, 0);
    const struct weight weight = weight_of(b, segment, 0);
    int64_t number = b->begin + segment, block = row / ROW_BLOCK;
    const char *packed = block_at(b, b->packed, v, segment, block, job->width);
    const void *bias = vector_at(job->first_bias, number, job->dtype, out);
    multiply(v, job->dtype, &weight, out, outs, packed, rows, room, 0);
    if (!job->down_weight) {
        char *y = (char *)at(job->y, job->dtype, (b->low[segment] + row) * job->y_stride + out);
        v->store(job->dtype, room->sums[0], rows, outs, bias, y, job->y_stride);
        return;
    }
    const void *up_bias = job->gated ? vector_at(job->first_bias, number, job->dtype, job->inner + out) : NULL;
    if (job->gated) multiply(v, job->dtype, &weight, job->inner + out, outs, packed, rows, room, 1);
    const struct variant *next = way_of(b, segment, 1);
    next->activate(job->dtype, job->activation, room->sums[0], job->gated ? room->sums[1] : NULL, rows, outs, bias,
                   up_bias, out, job->inner, block_at(b, b->inner, next, segment, block, job->inner));
}

static void down_tile(const struct batch *b, int64_t segment, int64_t out, int64_t outs, int64_t row, int64_t rows,
                      struct room *room) {
    const struct job *job = b->job;
    const struct variant *v = way_of(b, segment, 1);
    const struct weight weight = weight_of(b, segment, 1);
    int64_t number = b->begin + segment;
    char *y = (char *)at(job->y, job->dtype, (b->low[segment] + row) * job->y_stride + out);
    const char *inner = block_at(b, b->inner, v, segment, row / ROW_BLOCK, weight.k);
    multiply(v, job->dtype, &weight, out, outs, inner, rows, room, 0);
    v->store(job->dtype, room->sums[0], rows, outs, vector_at(job->down_bias, number, job->dtype, out), y,
             job->y_stride);
}

static void settle_segment(const struct batch *b, int64_t segment) {
    const struct variant *v = way_of(b, segment, 1);
    if (v->settle)
        v->settle(b->high[segment] - b->low[segment], b->job->inner, block_at(b, b->inner, v, segment, 0, b->job->inner));
}

static void tile_task(const struct batch *b, int64_t segment, int64_t task, struct room *room) {
    int64_t outs = outs_of(b), end = smaller(outs, (task + 1) * TASK_TILES * TILE);
    int64_t total = b->high[segment] - b->low[segment];
    room->step = total <= PASS_ROWS ? UNPACK_ROWS : TILE; /* a tile that several passes take is unpacked once */
    for (int64_t out = task * TASK_TILES * TILE; out < end; out += TILE)
        for (int64_t row = 0; row < total; row += PASS_ROWS) {
            room->is_kept = row > 0;
            (b->phase == DOWN ? down_tile : first_tile)(b, segment, out, smaller(end - out, TILE), row,
                                                        smaller(total - row, PASS_ROWS), room);
        }
}

static void take_tasks(void *data) {
    struct batch *b = data;
    struct room room;
    int64_t per_segment = (outs_of(b) + TASK_TILES * TILE - 1) / (TASK_TILES * TILE), task, segment = 0;
    if (b->scratch) {
        char *own = b->scratch + __atomic_fetch_add(&b->threads, 1, __ATOMIC_RELAXED) * b->scratch_bytes;
        room.unpacked[0] = own, room.unpacked[1] = own + b->scratch_bytes / 2;
    }
    b->variant->begin();
    while ((task = __atomic_fetch_add(&b->next, 1, __ATOMIC_RELAXED)) < b->tasks) {
        if (b->phase == PACK) {
            while (segment + 1 < b->end - b->begin && b->block[segment + 1] <= task) segment++;
            pack_block(b, segment, task - b->block[segment]);
        } else if (b->phase == SETTLE) {
            settle_segment(b, task);
        } else {
            tile_task(b, task / per_segment, task % per_segment, &room);
        }
    }
    b->variant->end();
}

static void run_phase(struct batch *b, enum phase phase, int64_t tasks, int64_t least) {
    b->phase = phase, b->tasks = tasks, b->next = 0, b->threads = 0;
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
    if (b->job->down_weight && b->variant->few) run_phase(b, SETTLE, segments, 17);
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

static int any_packed(const struct job *job) {
    for (int64_t i = 0; i < job->segments; i++)
        if ((job->first_packed && job->first_packed[i]) || (job->down_packed && job->down_packed[i])) return 1;
    return 0;
}

/* Takes the memory of a batch. Returns whether memory is short. */
static int take_memory(struct batch *b, int64_t most) {
    const struct job *job = b->job;
    int64_t k = job->width > job->inner ? job->width : job->inner, threads = job->threads < 1 ? 1 : job->threads;
    int failed = posix_memalign((void **)&b->packed, 64, most * most_bytes(b->variant, job->width));
    if (!failed && job->down_weight)
        failed = posix_memalign((void **)&b->inner, 64, most * most_bytes(b->variant, job->inner));
    if (!failed && any_packed(job)) {
        b->scratch_bytes = 2 * TILE * (k + 32) * bytes_of(job->dtype);
        failed = posix_memalign((void **)&b->scratch, 64, threads * b->scratch_bytes);
    }
    return failed;
}

/* Runs a job on a variant. Returns 0, or -1 if memory for packed rows is short. */
int expertflow_run(const struct job *job, int variant) {
    int64_t segments = job->segments, rows = 0;
    for (int64_t i = 0; i < segments; i++) rows += job->last[i] - job->first[i];
    int64_t most = segments + blocks_of(smaller(rows, BATCH_ROWS));
    int64_t *low = malloc((3 * segments + 3) * sizeof *low), *high = low + segments + 1, *block = high + segments + 1;
    struct batch b = {.job = job, .variant = VARIANTS[variant], .low = low, .high = high, .block = block};
    int failed = !low || take_memory(&b, most);
    for (int64_t begin = 0, row = 0, blocks; !failed && begin < segments;) {
        int64_t last = fill_batch(job, begin, &row, low, high, block, &blocks);
        b.begin = begin, b.end = last + 1;
        run_batch(&b, blocks);
        begin = row ? last : last + 1;
    }
    free(low), free(b.packed), free(b.inner), free(b.scratch);
    return failed ? -1 : 0;
}

/* Rows of a packed matrix that threads unpack by turns. */
struct unpacking {
    const struct packed *matrix;
    const struct variant *variant;
    int dtype;
    char *into;
    int64_t next;
};

static void take_rows(void *data) {
    struct unpacking *u = data;
    const struct packed *m = u->matrix;
    int64_t row;
    while ((row = __atomic_fetch_add(&u->next, TILE, __ATOMIC_RELAXED)) < m->rows)
        u->variant->unpack(u->dtype, m, row, smaller(m->rows - row, TILE),
                           (char *)at(u->into, u->dtype, row * m->columns));
}

/* Unpacks a matrix to dense rows of a type. */
void expertflow_unpack(const struct packed *matrix, int dtype, void *into, int variant, parallel_fn parallel,
                       int threads) {
    struct unpacking u = {matrix, VARIANTS[variant], dtype, into, 0};
    if (threads < 2 || matrix->rows <= TILE) take_rows(&u);
    else parallel(take_rows, &u, threads, 0);
}

/* Returns the sizes of the structures that a caller lays out. */
int expertflow_layout(void) { return (int)(sizeof(struct job) << 16 | sizeof(struct packed)); }

/* Returns the name of variant i, NULL after the last; they are listed best first. */
const char *expertflow_variant(int i) { return VARIANTS[i] ? VARIANTS[i]->name : NULL; }

/* Returns whether this CPU runs variant i. */
int expertflow_usable(int i) { return VARIANTS[i]->usable(); }

/* Returns whether variant i multiplies values of this type. */
int expertflow_takes(int i, int dtype) { return dtype == DTYPE_BFLOAT16 || VARIANTS[i]->takes_float32_and_float16; }
