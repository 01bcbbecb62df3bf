/* The forward pass of Qwen3 in double precision, one layer after the other. */
#include "engine/cpu/test/reference.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static double *read_mat(const struct mdl *m, enum mdl_tensor t, int layer)
{
    int rows, cols;
    mdl_shape(mdl_config(m), t, &rows, &cols);
    size_t n = (size_t)rows * (size_t)cols;
    float *f = malloc(n * sizeof *f);
    double *d = malloc(n * sizeof *d);
    mdl_read(m, t, layer, 0, rows, KM_F32, f, NULL);
    for (size_t i = 0; i < n; i++)
        d[i] = f[i];
    free(f);
    return d;
}

/* y[T][rows] = x[T][cols] W^T; with add, y += x W^T */
static void ref_linear(const struct mdl *m, enum mdl_tensor t, int layer, int T, const double *x, double *y, bool add)
{
    int rows, cols;
    mdl_shape(mdl_config(m), t, &rows, &cols);
    double *w = read_mat(m, t, layer);
    for (int i = 0; i < T; i++)
        for (int r = 0; r < rows; r++) {
            double s = add ? y[i * rows + r] : 0;
            for (int c = 0; c < cols; c++)
                s += x[i * cols + c] * w[r * cols + c];
            y[i * rows + r] = s;
        }
    free(w);
}

static void ref_norm(const struct mdl *m, enum mdl_tensor t, int layer, int n, int d, const double *x, double *y)
{
    double *w = read_mat(m, t, layer);
    for (int i = 0; i < n; i++) {
        double s = 0;
        for (int c = 0; c < d; c++)
            s += x[i * d + c] * x[i * d + c];
        s = 1 / sqrt(s / d + (double)mdl_config(m)->rms_eps);
        for (int c = 0; c < d; c++)
            y[i * d + c] = x[i * d + c] * s * w[c];
    }
    free(w);
}

static void ref_rope(const struct mdl_config *c, int T, int heads, double *x)
{
    for (int t = 0; t < T; t++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < c->head_dim / 2; i++) {
                double *v = x + (t * heads + h) * c->head_dim,
                       a = t / pow((double)c->rope_theta, 2.0 * i / c->head_dim);
                double lo = v[i], hi = v[i + c->head_dim / 2];
                v[i] = lo * cos(a) - hi * sin(a);
                v[i + c->head_dim / 2] = hi * cos(a) + lo * sin(a);
            }
}

static void ref_attention(const struct mdl_config *c, int T, const double *q, const double *k, const double *v,
                          double *out)
{
    const int H = c->n_heads, G = c->n_kv_heads, d = c->head_dim;
    double *p = malloc(sizeof *p * (size_t)T);
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++) {
            double sum = 0, *o = out + (t * H + h) * d;
            int g = h / (H / G);
            for (int s = 0; s <= t; s++) {
                double dot = 0;
                for (int i = 0; i < d; i++)
                    dot += q[(t * H + h) * d + i] * k[(s * G + g) * d + i];
                sum += p[s] = exp(dot / sqrt(d));
            }
            for (int i = 0; i < d; i++) {
                o[i] = 0;
                for (int s = 0; s <= t; s++)
                    o[i] += p[s] / sum * v[(s * G + g) * d + i];
            }
        }
    free(p);
}

double *reference(const struct mdl *m, const int32_t *tokens, int T)
{
    const struct mdl_config *c = mdl_config(m);
    const int D = c->hidden, Hd = c->n_heads * c->head_dim, Gd = c->n_kv_heads * c->head_dim, F = c->ffn;
    double *emb = read_mat(m, MDL_EMBED, 0), *x = malloc(sizeof *x * (size_t)(T * D)),
           *xn = malloc(sizeof *xn * (size_t)(T * D));
    double *q = malloc(sizeof *q * (size_t)(T * Hd)), *a = malloc(sizeof *a * (size_t)(T * Hd));
    double *k = malloc(sizeof *k * (size_t)(T * Gd)), *v = malloc(sizeof *v * (size_t)(T * Gd));
    double *g = malloc(sizeof *g * (size_t)(T * F)), *u = malloc(sizeof *u * (size_t)(T * F));
    for (int t = 0; t < T; t++)
        memcpy(x + t * D, emb + tokens[t] * D, sizeof *x * (size_t)D);
    for (int l = 0; l < c->n_layers; l++) {
        ref_norm(m, MDL_NORM_ATTN, l, T, D, x, xn);
        ref_linear(m, MDL_Q, l, T, xn, q, false);
        ref_linear(m, MDL_K, l, T, xn, k, false);
        ref_linear(m, MDL_V, l, T, xn, v, false);
        ref_norm(m, MDL_Q_NORM, l, T * c->n_heads, c->head_dim, q, q);
        ref_norm(m, MDL_K_NORM, l, T * c->n_kv_heads, c->head_dim, k, k);
        ref_rope(c, T, c->n_heads, q);
        ref_rope(c, T, c->n_kv_heads, k);
        ref_attention(c, T, q, k, v, a);
        ref_linear(m, MDL_O, l, T, a, x, true);
        ref_norm(m, MDL_NORM_FFN, l, T, D, x, xn);
        ref_linear(m, MDL_GATE, l, T, xn, g, false);
        ref_linear(m, MDL_UP, l, T, xn, u, false);
        for (int i = 0; i < T * F; i++)
            g[i] = g[i] / (1 + exp(-g[i])) * u[i];
        ref_linear(m, MDL_DOWN, l, T, g, x, true);
    }
    ref_norm(m, MDL_NORM_OUT, 0, T, D, x, xn);
    double *logits = malloc(sizeof *logits * (size_t)c->vocab), sum = 0;
    ref_linear(m, MDL_LM_HEAD, 0, 1, xn + (T - 1) * D, logits, false);
    for (int i = 0; i < c->vocab; i++)
        sum += exp(logits[i]);
    for (int i = 0; i < c->vocab; i++)
        logits[i] -= log(sum);
    free(emb), free(x), free(xn), free(q), free(a), free(k), free(v), free(g), free(u);
    return logits;
}
