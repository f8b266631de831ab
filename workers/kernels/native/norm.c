/* Root mean square norms of few rows: one call instead of the library's seven. No instruction set is asked for, and the
 * sum has one order whatever the compiler makes of it, so a row has the same bits on every CPU. */
#include "kernels.h"

#include <math.h>
#include <string.h>

#define LANES 16

/* What becomes of a normalised value v and its weight w. */
enum { ROUND_THEN_WEIGH, WEIGH_THEN_ROUND, WEIGH_FROM_ONE };

static inline float from_bfloat16(uint16_t stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

static float scale_of(const float *lanes, int64_t width, float epsilon) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return 1.0f / sqrtf(sum / (float)width + epsilon);
}

static void norm_bfloat16(int form, int64_t width, const uint16_t *x, const uint16_t *weight, float epsilon, uint16_t *y) {
    float lanes[LANES] = {0};
    int64_t whole = width - width % LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += from_bfloat16(x[i + j]) * from_bfloat16(x[i + j]);
    for (int64_t i = whole; i < width; i++) lanes[i - whole] += from_bfloat16(x[i]) * from_bfloat16(x[i]);
    const float scale = scale_of(lanes, width, epsilon);
    if (form == ROUND_THEN_WEIGH)
        for (int64_t i = 0; i < width; i++)
            y[i] = to_bfloat16(from_bfloat16(weight[i]) * from_bfloat16(to_bfloat16(from_bfloat16(x[i]) * scale)));
    else if (form == WEIGH_THEN_ROUND)
        for (int64_t i = 0; i < width; i++) y[i] = to_bfloat16(from_bfloat16(weight[i]) * (from_bfloat16(x[i]) * scale));
    else
        for (int64_t i = 0; i < width; i++)
            y[i] = to_bfloat16(from_bfloat16(x[i]) * scale * (1.0f + from_bfloat16(weight[i])));
}

static void norm_float32(int form, int64_t width, const float *x, const float *weight, float epsilon, float *y) {
    float lanes[LANES] = {0};
    int64_t whole = width - width % LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * x[i + j];
    for (int64_t i = whole; i < width; i++) lanes[i - whole] += x[i] * x[i];
    const float scale = scale_of(lanes, width, epsilon);
    const float added = form == WEIGH_FROM_ONE ? 1.0f : 0.0f;
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * scale * (added + weight[i]);
}

/* y = norm(x) for `rows` rows of `width` elements, all contiguous; weight: [width]. float32 or bfloat16. */
void expertflow_norm(int dtype, int form, int64_t rows, int64_t width, const void *x, const void *weight, double epsilon,
                     void *y) {
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row * width;
        if (dtype == DTYPE_BFLOAT16)
            norm_bfloat16(form, width, (const uint16_t *)x + at, weight, (float)epsilon, (uint16_t *)y + at);
        else
            norm_float32(form, width, (const float *)x + at, weight, (float)epsilon, (float *)y + at);
    }
}
