/* Element-wise passes of a training step, each fused into one; compiled for the machine by cpu_kernels.py.

   This file includes itself, once for each type of element: bf16 (as uint16) and fp32. In and out: contiguous elements;
   sums and exponentials in fp32, for bf16 one rounding to nearest even at the end.
   A NaN or an infinity that comes in goes out as NaN: a step that diverged must be seen. */
#ifndef PASS
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
typedef union { float f; uint32_t u; } word;

static inline float wide_bf16(bf16 x) { word w = {.u = (uint32_t)x << 16}; return w.f; }

static inline bf16 narrow_bf16(float x) {
    word w = {.f = x};
    return (w.u + 0x7fff + ((w.u >> 16) & 1)) >> 16;
}

/* exp(x) to 2e-7, from 2^-126 to 2^126: 2^n times a polynomial of the rest in [-ln2/2, ln2/2], interpolated at
   Chebyshev's points (2e-9). n ln2 is taken off in two parts, the first of few bits: nothing of x is lost. x - x is 0,
   or NaN. */
static inline float exponential(float x) {
    float b = x < -87.3f ? -87.3f : x;
    b = b > 87.3f ? 87.3f : b;
    float n = rintf(b * 1.44269504f), f = (b - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.f + f * (1.00000004f + f * (0.5f + f * (0.16666415f + f * (0.04166635f + f * (0.00837521f
              + f * 0.00139412f)))));
    word scale = {.u = (uint32_t)((int32_t)n + 127) << 23};
    return p * scale.f + (x - x);
}

/* The tanh GELU as x * sigmoid(z), z = 2 sqrt(2/pi) (x + 0.044715 x^3): the same function with one exponential. */
#define Z1 1.59576912f
#define Z3 0.0713548163f

/* Beyond 30 the sigmoid is 0 or 1, and x^3 could overflow; a NaN passes. */
static inline float bounded(float x) { x = x < -30.f ? -30.f : x; return x > 30.f ? 30.f : x; }

#define PASS(name) name##_bf16
#define element bf16
#define wide wide_bf16
#define narrow narrow_bf16
#include __FILE__
#undef PASS
#undef element
#undef wide
#undef narrow
#define PASS(name) name##_fp32
#define element float
#define wide
#define narrow
#include __FILE__
#else

/* Rows of logits, to which `bias` is added (unless it is null), become rows of softmax minus the label's 1 (where `grad`),
   loss[r] the row's nats; label < 0: zeros. The gradient is that of loss + z_loss * log(Z)^2. */
void PASS(cross_entropy)(element *logits, const element *bias, const int64_t *labels, float *loss, int64_t rows,
                         int64_t V, int grad, float z_loss, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float *e = malloc(V * sizeof(float));
#pragma omp for
        for (int64_t r = 0; r < rows; r++) {
            element *row = logits + r * V;
            loss[r] = 0.f;
            if (labels[r] < 0) {
                if (grad) memset(row, 0, V * sizeof(element));
                continue;
            }
            float top = -INFINITY, sum = 0.f;
#pragma omp simd reduction(max : top)
            for (int64_t j = 0; j < V; j++) {
                e[j] = wide(row[j]) + (bias ? wide(bias[j]) : 0.f);
                top = e[j] > top ? e[j] : top;
            }
            float label = e[labels[r]];
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < V; j++) { e[j] = exponential(e[j] - top); sum += e[j]; }
            loss[r] = top + logf(sum) - label;
            if (!grad) continue;
            float scale = (1.f + 2.f * z_loss * (top + logf(sum))) / sum;
#pragma omp simd
            for (int64_t j = 0; j < V; j++) row[j] = narrow(e[j] * scale);
            row[labels[r]] = narrow(e[labels[r]] * scale - 1.f);
        }
        free(e);
    }
}

/* sums[j] += the sum of column j. */
void PASS(column_sums)(const element *x, float *sums, int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t from = 0; from < columns; from += 1024) {
        int64_t to = from + 1024 < columns ? from + 1024 : columns;
        for (int64_t r = 0; r < rows; r++)
#pragma omp simd
            for (int64_t j = from; j < to; j++) sums[j] += wide(x[r * columns + j]);
    }
}

void PASS(gelu)(const element *x, element *y, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        float v = wide(x[i]), b = bounded(v);
        y[i] = narrow(v / (1.f + exponential(-b * (Z1 + Z3 * b * b))));
    }
}

void PASS(gelu_backward)(const element *dy, const element *x, element *dx, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        float v = bounded(wide(x[i])), s = 1.f / (1.f + exponential(-v * (Z1 + Z3 * v * v)));
        dx[i] = narrow(wide(dy[i]) * (s + v * s * (1.f - s) * (Z1 + 3.f * Z3 * v * v)));
    }
}

/* y = silu(g) u, silu(g) = g sigmoid(g). */
void PASS(swiglu)(const element *g, const element *u, element *y, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        float v = wide(g[i]);
        y[i] = narrow(v / (1.f + exponential(-v)) * wide(u[i]));
    }
}

void PASS(swiglu_backward)(const element *dy, const element *g, const element *u, element *dg, element *du, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        float v = wide(g[i]), s = 1.f / (1.f + exponential(-v)), d = wide(dy[i]);
        du[i] = narrow(d * v * s);
        dg[i] = narrow(d * wide(u[i]) * (s + v * s * (1.f - s)));
    }
}

/* y = x w r, r = 1 / sqrt(mean(x^2) + eps) of each row, which is kept. */
void PASS(rms_norm)(const element *x, const element *w, element *y, float *inverse, int64_t rows, int64_t D, float eps, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const element *from = x + r * D;
        element *to = y + r * D;
        float sum = 0.f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < D; j++) sum += wide(from[j]) * wide(from[j]);
        float scale = inverse[r] = 1.f / sqrtf(sum / D + eps);
#pragma omp simd
        for (int64_t j = 0; j < D; j++) to[j] = narrow(wide(from[j]) * scale * wide(w[j]));
    }
}

/* dx = r (dy w - x r^2 mean(dy w x)); dw[j] += the sum over rows of dy x r. */
void PASS(rms_norm_backward)(const element *dy, const element *x, const element *w, const float *inverse, element *dx, float *dw,
                             int64_t rows, int64_t D, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float *own = calloc(D, sizeof(float));
#pragma omp for
        for (int64_t r = 0; r < rows; r++) {
            const element *d = dy + r * D, *from = x + r * D;
            float sum = 0.f, scale = inverse[r];
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < D; j++) sum += wide(d[j]) * wide(w[j]) * wide(from[j]);
            float back = sum * scale * scale / D;
#pragma omp simd
            for (int64_t j = 0; j < D; j++) {
                float v = wide(from[j]), g = wide(d[j]);
                dx[r * D + j] = narrow(scale * (g * wide(w[j]) - v * back));
                own[j] += g * v * scale;
            }
        }
#pragma omp for ordered schedule(static, 1)
        for (int t = 0; t < threads; t++) /* in the threads' order: the same sums every time */
#pragma omp ordered
            for (int64_t j = 0; j < D; j++) dw[j] += own[j];
        free(own);
    }
}

/* Scores [N, Q, P] become probabilities: query q sees the first `start` + q + 1 keys, the others get 0. */
void PASS(causal_softmax)(element *scores, int64_t N, int64_t Q, int64_t P, int64_t start, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < N * Q; r++) {
        element *row = scores + r * P;
        int64_t seen = start + r % Q + 1;
        float e[seen], top = -INFINITY, sum = 0.f;
#pragma omp simd reduction(max : top)
        for (int64_t j = 0; j < seen; j++) { float x = wide(row[j]); top = x > top ? x : top; }
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < seen; j++) { e[j] = exponential(wide(row[j]) - top); sum += e[j]; }
        float scale = 1.f / sum;
#pragma omp simd
        for (int64_t j = 0; j < seen; j++) row[j] = narrow(e[j] * scale);
        memset(row + seen, 0, (P - seen) * sizeof(element));
    }
}

/* dp becomes ds = p (dp - sum(dp p)); what a query does not see gets 0. */
void PASS(causal_softmax_backward)(element *dp, const element *p, int64_t N, int64_t Q, int64_t P, int64_t start, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < N * Q; r++) {
        element *d = dp + r * P;
        const element *q = p + r * P;
        int64_t seen = start + r % Q + 1;
        float sum = 0.f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < seen; j++) sum += wide(d[j]) * wide(q[j]);
#pragma omp simd
        for (int64_t j = 0; j < seen; j++) d[j] = narrow(wide(q[j]) * (wide(d[j]) - sum));
        memset(d + seen, 0, (P - seen) * sizeof(element));
    }
}

/* Coordinates (i, i + R) of each head turned by the angle of the token; x is strided, y contiguous [B, H, T, K]. */
void PASS(rotate)(const element *x, element *y, const element *cosine, const element *sine, int64_t B, int64_t H, int64_t T, int64_t K,
            int64_t R, int64_t step_b, int64_t step_h, int64_t step_t, float sign, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < B * H * T; r++) {
        int64_t t = r % T, h = r / T % H, b = r / T / H;
        const element *from = x + b * step_b + h * step_h + t * step_t;
        element *to = y + r * K;
#pragma omp simd
        for (int64_t i = 0; i < R; i++) {
            float c = wide(cosine[t * R + i]), s = sign * wide(sine[t * R + i]);
            float first = wide(from[i]), second = wide(from[i + R]);
            to[i] = narrow(first * c - second * s);
            to[i + R] = narrow(second * c + first * s);
        }
        memcpy(to + 2 * R, from + 2 * R, (K - 2 * R) * sizeof(element));
    }
}
#endif
