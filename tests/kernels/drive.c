/* Checks the variants of the processor that this is compiled for, without Python: products against double,
 * and every row against itself alone. Exit status 0 if they hold. Serves processors that are only emulated. */
#include "kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int expertflow_run(const struct job *job, int variant);
const char *expertflow_variant(int i);
int expertflow_usable(int i);
int expertflow_takes(int i, int dtype);

static unsigned state = 1;
static float draw(void) { return (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f; }

static float rounded(int dtype, float value, void *into, long i) {
    if (dtype == DTYPE_FLOAT32) return ((float *)into)[i] = value;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits &= 0xffff0000; /* exact in bfloat16; of float16 only values with few digits are taken */
    memcpy(&value, &bits, 4);
    if (dtype == DTYPE_BFLOAT16) return ((uint16_t *)into)[i] = (uint16_t)(bits >> 16), value;
    value = roundf(value * 64) / 64; /* 6 digits: float16 by hand */
    uint16_t half = value < 0 ? 0x8000 : 0;
    float size = fabsf(value);
    if (size > 0) {
        int exponent;
        float part = frexpf(size, &exponent);
        half |= (uint16_t)((exponent + 14) << 10 | (int)((part * 2 - 1) * 1024));
    }
    return ((uint16_t *)into)[i] = half, value;
}

static double read_back(int dtype, const void *values, long i) {
    if (dtype == DTYPE_FLOAT32) return ((const float *)values)[i];
    uint16_t bits = ((const uint16_t *)values)[i];
    if (dtype == DTYPE_BFLOAT16) {
        uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }
    double part = (bits & 1023) / 1024.0;
    int exponent = bits >> 10 & 31;
    return (bits & 0x8000 ? -1 : 1) * (exponent ? ldexp(1 + part, exponent - 15) : ldexp(part, -14));
}

static int check(int variant, int dtype, long out, long k, long rows) {
    long size = dtype == DTYPE_FLOAT32 ? 4 : 2, wrong = 0;
    char *weight = malloc(out * k * size), *x = malloc(rows * k * size);
    char *y = malloc(rows * out * size), *alone = malloc(out * size);
    double *w = malloc(out * k * sizeof *w), *v = malloc(rows * k * sizeof *v);
    for (long i = 0; i < out * k; i++) w[i] = rounded(dtype, draw(), weight, i);
    for (long i = 0; i < rows * k; i++) v[i] = rounded(dtype, draw(), x, i);
    int64_t first = 0, last = rows;
    const void *weights[] = {weight};
    struct job job = {.dtype = dtype, .segments = 1, .threads = 1, .width = k, .out = out, .first_weight = weights,
                      .first = &first, .last = &last, .x = x, .y = y, .x_stride = k, .y_stride = out};
    if (expertflow_run(&job, variant)) return 1;
    for (long row = 0; row < rows; row++) {
        struct job one = job;
        int64_t end = 1;
        one.last = &end, one.x = x + row * k * size, one.y = alone;
        if (expertflow_run(&one, variant)) return 1;
        wrong += memcmp(alone, y + row * out * size, out * size) != 0;
        for (long o = 0; o < out; o++) {
            double exact = 0, magnitude = 0;
            for (long i = 0; i < k; i++) {
                exact += v[row * k + i] * w[o * k + i];
                magnitude += fabs(v[row * k + i] * w[o * k + i]);
            }
            double step = dtype == DTYPE_FLOAT32 ? 0 : dtype == DTYPE_BFLOAT16 ? 1.0 / 256 : 1.0 / 1024;
            wrong += fabs(read_back(dtype, y, row * out + o) - exact) > 1e-6 * magnitude + step * fabs(exact) + 1e-7;
        }
    }
    free(weight), free(x), free(y), free(alone), free(w), free(v);
    return wrong != 0;
}

int main(void) {
    int failed = 0;
    const long shapes[][3] = {{5, 3, 1}, {37, 83, 9}, {33, 513, 17}, {64, 1030, 40}};
    for (int variant = 0; expertflow_variant(variant); variant++)
        for (int dtype = 0; dtype < 3; dtype++)
            for (int i = 0; i < 4; i++) {
                if (!expertflow_usable(variant) || !expertflow_takes(variant, dtype)) continue;
                int wrong = check(variant, dtype, shapes[i][0], shapes[i][1], shapes[i][2]);
                if (wrong) printf("wrong: %s, type %d, shape %d\n", expertflow_variant(variant), dtype, i);
                failed |= wrong;
            }
    printf("%s checked\n", expertflow_variant(0));
    return failed;
}
