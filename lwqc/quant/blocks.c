/* Columns of blocks [block, m], as `tiles.tile` makes them: search for their scales, and codes.
 *
 * What `range_search` and `unit_grid` say in numpy, with the values of a few columns held in the
 * first-level cache instead of one pass over memory for each operation. Bytes are the same: sums
 * go from row to row, and nothing is contracted (-ffp-contract=off). Integer formats only.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 32
#define ROUND 12582912.0f /* 1.5 * 2^23: adding it leaves no bits behind the point */

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif

/* The values on the grid of scale 1: bounds are whole, so that clipping may come first. */
static inline float rounded(float value, float low, float high) {
    value = value < low ? low : value;
    value = value > high ? high : value;
    return (value + ROUND) - ROUND;
}

static void load(const float *columns, int64_t m, int64_t block, int64_t lanes, float *held) {
    if (lanes < LANES) memset(held, 0, sizeof(float) * block * LANES);
    for (int64_t i = 0; i < block; i++)
        memcpy(held + i * LANES, columns + i * m, sizeof(float) * lanes);
}

/* Codes [block, LANES] of one column after the other, at to[lane], eight by eight. */
static void transpose(const uint8_t *bytes, int64_t block, int64_t lanes, uint8_t **to) {
    int64_t whole = block / 8 * 8, full = lanes / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8)
        for (int64_t l = 0; l < full; l += 8) {
            uint64_t x[8], swap;
            for (int r = 0; r < 8; r++) memcpy(x + r, bytes + (i + r) * LANES + l, 8);
            for (int width = 4; width; width /= 2) { /* swap halves of 8, 4 and 2 rows */
                static const uint64_t masks[5] = {
                    0, 0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0, 0x00000000ffffffff};
                for (int r = 0; r < 8; r++)
                    if (!(r & width)) {
                        swap = ((x[r] >> (8 * width)) ^ x[r + width]) & masks[width];
                        x[r + width] ^= swap;
                        x[r] ^= swap << (8 * width);
                    }
            }
            for (int r = 0; r < 8; r++) memcpy(to[l + r] + i, x + r, 8);
        }
    for (int64_t l = 0; l < lanes; l++)
        for (int64_t i = l < full ? whole : 0; i < block; i++) to[l][i] = bytes[i * LANES + l];
}

/* The best scale of each column of w, from start * each of the fractions; zero: of codes.
 * Returns 0, or 1 where there is no memory. */
WIDEST int search(const float *w, int64_t m, int64_t block, const float *start, const float *zero,
                  const float *fractions, int64_t count, float lowest, float highest, float *best) {
    float *held = malloc(sizeof(float) * block * LANES);
    if (!held) return 1;
    for (int64_t j = 0; j < m; j += LANES) {
        int64_t lanes = m - j < LANES ? m - j : LANES;
        float scale[LANES], low[LANES], high[LANES], gains[LANES], chosen[LANES];
        load(w + j, m, block, lanes, held);
        for (int l = 0; l < LANES; l++) {
            scale[l] = l < lanes ? start[j + l] : 1.0f;
            low[l] = lowest - (l < lanes ? zero[j + l] : 0.0f);
            high[l] = highest - (l < lanes ? zero[j + l] : 0.0f);
            gains[l] = -1.0f;
            chosen[l] = scale[l];
        }
        for (int64_t c = 0; c < count; c++) {
            float inverse[LANES], wd[LANES] = {0}, dd[LANES] = {0};
            for (int l = 0; l < LANES; l++) inverse[l] = 1.0f / (scale[l] * fractions[c]);
            for (int64_t i = 0; i < block; i++) {
                const float *row = held + i * LANES;
                for (int l = 0; l < LANES; l++) {
                    float d = rounded(row[l] * inverse[l], low[l], high[l]);
                    wd[l] += row[l] * d;
                    dd[l] += d * d;
                }
            }
            for (int l = 0; l < LANES; l++) {
                float fitted = dd[l] > 0 ? wd[l] / dd[l] : 0.0f;
                float gain = fabsf(fitted) * sqrtf(dd[l]);
                chosen[l] = gain > gains[l] ? fitted : chosen[l];
                gains[l] = gain > gains[l] ? gain : gains[l];
            }
        }
        memcpy(best + j, chosen, sizeof(float) * lanes);
    }
    free(held);
    return 0;
}

/* Codes [rows, blocks, block] of the columns [block, blocks * rows]; returns as `search` does. */
WIDEST int encode(const float *w, int64_t rows, int64_t blocks, int64_t block, const float *scale,
                  const float *zero, float lowest, float highest, uint8_t *codes) {
    int64_t m = rows * blocks;
    float *held = malloc(sizeof(float) * block * LANES);
    if (!held) return 1;
    for (int64_t j = 0; j < m; j += LANES) {
        int64_t lanes = m - j < LANES ? m - j : LANES;
        float inverse[LANES], low[LANES], high[LANES], shift[LANES];
        load(w + j, m, block, lanes, held);
        for (int l = 0; l < LANES; l++) {
            inverse[l] = l < lanes ? 1.0f / scale[j + l] : 1.0f;
            shift[l] = l < lanes ? zero[j + l] : 0.0f;
            low[l] = lowest - shift[l];
            high[l] = highest - shift[l];
        }
        uint8_t *bytes = (uint8_t *)held; /* each row takes the place of values already read */
        for (int64_t i = 0; i < block; i++) {
            uint8_t row[LANES];
            for (int l = 0; l < LANES; l++)
                row[l] = (uint8_t)(int32_t)(
                    rounded(held[i * LANES + l] * inverse[l], low[l], high[l]) + shift[l]);
            memcpy(bytes + i * LANES, row, LANES);
        }
        uint8_t *to[LANES];
        for (int64_t l = 0; l < lanes; l++)
            to[l] = codes + ((j + l) % rows * blocks + (j + l) / rows) * block;
        transpose(bytes, block, lanes, to);
    }
    free(held);
    return 0;
}
