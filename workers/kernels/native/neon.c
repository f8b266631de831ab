/* NEON: 64-bit ARM processors. bfloat16 and float16 weights are widened to float32, as with AVX2. */
#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

static inline float float_of_half(uint16_t bits) {
    __fp16 half;
    memcpy(&half, &bits, 2);
    return (float)half;
}
static inline uint16_t half_of_float(float value) {
    __fp16 half = (__fp16)value;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}
#define FLOAT_OF_HALF(bits) float_of_half(bits)
#define HALF_OF_FLOAT(value) half_of_float(value)
#include "common.inc"
#include "unpack.inc"

#define LANES 4
#define VECTOR float32x4_t
#define ZERO vdupq_n_f32(0)
#define FUSED(a, b, total) vfmaq_f32(total, a, b)
#define LOAD vld1q_f32
#define STORE vst1q_f32
#define STREAM_COLUMNS 4
#define MOST_COLUMNS 6
#define OUTS_OF(columns) 4 /* 32 registers */
static inline float32x4_t WIDEN(int dtype, const char *from, int part) {
    if (dtype == DTYPE_FLOAT32) return vld1q_f32((const float *)from + part * LANES);
    if (dtype == DTYPE_FLOAT16)
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)from + part * LANES)));
    uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)from));
    return vreinterpretq_f32_u32(part == 0 ? vshlq_n_u32(pairs, 16) : vandq_u32(pairs, vdupq_n_u32(0xffff0000)));
}
#define SUM_4(into, a, b, c, d) vst1q_f32(into, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)))
#include "float_dot.inc"

static int usable(void) { return 1; }

const struct variant variant_neon = {"neon",     usable,  1,       padded,     block_bytes,  pack_rows,
                                     float_tile, nothing, nothing, store_rows, activate_rows, unpack_rows,
                                    NULL, NULL, NULL};
#endif
