/* Products of some rows with bfloat16 weights, computed in float32: the CPU reads half the bytes that float32 weights
 * take, and decoding is bound by just that. A bfloat16 is the upper half of a float32, so widening is a shift.
 *
 * Plain C with the vector extensions of GCC and Clang; the compiler picks the instructions of the machine it runs on. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__ /* 32 registers of 16 floats: 24 sums, 6 inputs, a weight */
#define LANES 16
#define TILE_ROWS 6
#else /* 16 registers of 8 floats, or 32 of 4 */
#define LANES 8
#define TILE_ROWS 2
#endif
#define TILE_OUT 4 /* rows of the weights in a strip */
#define LONE_OUT 16 /* the same for a single row of input: enough sums to wait for none */

typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

static inline __attribute__((always_inline)) floats load(const float *from)
{
    floats lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static inline __attribute__((always_inline)) floats widened(const uint16_t *from)
{
    halves narrow;
    memcpy(&narrow, from, sizeof narrow);
    words wide = __builtin_convertvector(narrow, words) << 16;
    floats lanes;
    memcpy(&lanes, &wide, sizeof lanes);
    return lanes;
}

static inline float widened_one(uint16_t weight)
{
    uint32_t wide = (uint32_t)weight << 16;
    float result;
    memcpy(&result, &wide, sizeof result);
    return result;
}

static void widen(const uint16_t *from, float *to, long count)
{
    long k = 0;
    for (; k + LANES <= count; k += LANES) {
        floats lanes = widened(from + k);
        memcpy(to + k, &lanes, sizeof lanes);
    }
    for (; k < count; k++)
        to[k] = widened_one(from[k]);
}

/* A tile of the result: `outs` rows of the weights by `count` rows of the input, all constant where it is inlined, so that
 * every sum is a register. The weights come narrow, or widened before. */
static inline __attribute__((always_inline)) void tile(const uint16_t *narrow, const float *wide, const float *rows,
                                                       float *result, long in, long out, const int outs,
                                                       const int count)
{
    floats sums[LONE_OUT][TILE_ROWS] = {{{0}}};
    long k = 0;
    for (; k + LANES <= in; k += LANES) {
        floats inputs[TILE_ROWS];
        for (int r = 0; r < count; r++)
            inputs[r] = load(rows + r * in + k);
        for (int o = 0; o < outs; o++) {
            floats weights = wide ? load(wide + o * in + k) : widened(narrow + o * in + k);
            for (int r = 0; r < count; r++)
                sums[o][r] += weights * inputs[r];
        }
    }
    for (int o = 0; o < outs; o++)
        for (int r = 0; r < count; r++) {
            float total = 0.0f;
            for (int lane = 0; lane < LANES; lane++)
                total += sums[o][r][lane];
            for (long rest = k; rest < in; rest++)
                total += widened_one(narrow[o * in + rest]) * rows[r * in + rest];
            result[r * out + o] = total;
        }
}

/* All rows of the input by `outs` rows of the weights. */
static inline __attribute__((always_inline)) void strip(const uint16_t *narrow, const float *wide, const float *rows,
                                                        float *result, long in, long out, const int outs, long count)
{
    long r = 0;
    for (; r + TILE_ROWS <= count; r += TILE_ROWS)
        tile(narrow, wide, rows + r * in, result + r * out, in, out, outs, TILE_ROWS);
    switch (count - r) {
    case 5: tile(narrow, wide, rows + r * in, result + r * out, in, out, outs, 5); break;
    case 4: tile(narrow, wide, rows + r * in, result + r * out, in, out, outs, 4); break;
    case 3: tile(narrow, wide, rows + r * in, result + r * out, in, out, outs, 3); break;
    case 2: tile(narrow, wide, rows + r * in, result + r * out, in, out, outs, 2); break;
    case 1: tile(narrow, wide, rows + r * in, result + r * out, in, out, outs, 1); break;
    }
}

static void one_row(const uint16_t *weight, const float *row, float *result, long in, long out)
{
    long strips = out / LONE_OUT;
#pragma omp parallel for schedule(static)
    for (long number = 0; number < strips; number++)
        tile(weight + number * LONE_OUT * in, NULL, row, result + number * LONE_OUT, in, out, LONE_OUT, 1);
    for (long o = strips * LONE_OUT; o < out; o++)
        tile(weight + o * in, NULL, row, result + o, in, out, 1, 1);
}

static void some_rows(const uint16_t *weight, const float *rows, float *result, long count, long in, long out)
{
    long strips = out / TILE_OUT;
#pragma omp parallel
    {
        /* With more rows than one tile holds, weights are widened once for all tiles. */
        float *wide = count > TILE_ROWS ? malloc(TILE_OUT * in * sizeof *wide) : NULL;
#pragma omp for schedule(static)
        for (long number = 0; number < strips; number++) {
            const uint16_t *narrow = weight + number * TILE_OUT * in;
            if (wide) {
                widen(narrow, wide, TILE_OUT * in);
                strip(narrow, wide, rows, result + number * TILE_OUT, in, out, TILE_OUT, count);
            } else {
                strip(narrow, NULL, rows, result + number * TILE_OUT, in, out, TILE_OUT, count);
            }
        }
        free(wide);
    }
    for (long o = strips * TILE_OUT; o < out; o++)
        strip(weight + o * in, NULL, rows, result + o, in, out, 1, count);
}

/* result[count, out] = rows[count, in] weight[out, in]^T, all contiguous. */
void linear_bf16(const uint16_t *weight, const float *rows, float *result, long count, long in, long out)
{
    if (count == 1)
        one_row(weight, rows, result, in, out);
    else
        some_rows(weight, rows, result, count, in, out);
}
