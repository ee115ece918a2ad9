/* The acoustic model of model.py: loss and gradient of one training sequence, for simulations.

   A framework spends most of its time on overhead where a batch is one sequence of 20 inputs. Here
   everything is plain loops over tiles that fit the registers. All arrays are float32, row-major;
   `fast.py` compiles and calls this, a test compares it with torch's autograd.

   Parameters and gradients are one vector in torch's order: of each of two layers W_ih [4H, inputs],
   W_hh [4H, H], b_ih [4H], b_hh [4H], gates in the order i, f, g, o; then the output's W [classes, H]
   and b [classes]. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef HIDDEN
#error "HIDDEN is the number of units in a layer, a multiple of 16: cc -DHIDDEN=96"
#endif

#ifdef __AVX512F__
#define VECTOR 16
#else
#define VECTOR 8
#endif

enum { H = HIDDEN, G = 4 * H, STEPS = 32, INPUTS = 256, CLASSES = 512 };

typedef float lane __attribute__((vector_size(4 * VECTOR), aligned(4)));
enum { LANE = VECTOR, ROWS = 4, LANES = 3 };

/* Of C [m, n] += A [m, k] B [k, n]. a_row, a_column: strides of A; b_row, c_row: of B's and C's rows. */
typedef struct {
    int k, a_row, a_column, b_row, c_row;
} shape;

/* ROWS rows of C, `lanes` vectors (a constant where this is inlined) wide. */
static inline __attribute__((always_inline)) void tile(int lanes, const shape *s, const float *a,
                                                       const float *b, float *c) {
    lane sum[ROWS][LANES], row[LANES];
    for (int r = 0; r < ROWS; r++) memcpy(sum[r], c + (size_t)r * s->c_row, lanes * sizeof(lane));
    for (int l = 0; l < s->k; l++) {
        memcpy(row, b + (size_t)l * s->b_row, lanes * sizeof(lane));
        for (int r = 0; r < ROWS; r++) {
            float x = a[(size_t)r * s->a_row + (size_t)l * s->a_column];
            for (int v = 0; v < lanes; v++) sum[r][v] += x * row[v];
        }
    }
    for (int r = 0; r < ROWS; r++) memcpy(c + (size_t)r * s->c_row, sum[r], lanes * sizeof(lane));
}

/* What is left at the edges. */
static void edge(int m, int n, const shape *s, const float *a, const float *b, float *c) {
    for (int i = 0; i < m; i++)
        for (int l = 0; l < s->k; l++) {
            float x = a[(size_t)i * s->a_row + (size_t)l * s->a_column];
            for (int j = 0; j < n; j++) c[(size_t)i * s->c_row + j] += x * b[(size_t)l * s->b_row + j];
        }
}

static void multiply(int m, int n, shape s, const float *a, const float *b, float *c) {
    int i = 0;
    for (; i + ROWS <= m; i += ROWS) {
        const float *rows = a + (size_t)i * s.a_row;
        float *to = c + (size_t)i * s.c_row;
        int j = 0;
        for (; j + LANES * LANE <= n; j += LANES * LANE) tile(LANES, &s, rows, b + j, to + j);
        for (; j + LANE <= n; j += LANE) tile(1, &s, rows, b + j, to + j);
        edge(ROWS, n - j, &s, rows, b + j, to + j);
    }
    edge(m - i, n, &s, a + (size_t)i * s.a_row, b, c + (size_t)i * s.c_row);
}

/* out [columns, rows] = in [rows, columns] */
static void transpose(int rows, int columns, const float *in, float *out) {
    enum { TILE = 16 };
    for (int i = 0; i < rows; i += TILE)
        for (int j = 0; j < columns; j += TILE)
            for (int q = j; q < columns && q < j + TILE; q++)
                for (int p = i; p < rows && p < i + TILE; p++)
                    out[(size_t)q * rows + p] = in[(size_t)p * columns + q];
}

/* y [n] += x [k] W [k, n], n a multiple of 64 or the last part done one by one */
static void vector_matrix(int k, int n, const float *x, const float *w, float *y) {
    int j = 0;
    for (; j + 4 * LANE <= n; j += 4 * LANE) {
        lane sum[4];
        memcpy(sum, y + j, sizeof sum);
        for (int l = 0; l < k; l++) {
            lane row[4];
            memcpy(row, w + (size_t)l * n + j, sizeof row);
            for (int s = 0; s < 4; s++) sum[s] += x[l] * row[s];
        }
        memcpy(y + j, sum, sizeof sum);
    }
    for (int l = 0; l < k; l++)
        for (int q = j; q < n; q++) y[q] += x[l] * w[(size_t)l * n + q];
}

/* e^x to 2 units in the last place, in a form that compilers turn into vectors; NaN stays NaN. */
static inline float exponential(float x) {
    const float magic = 12582912.0f; /* 1.5 · 2^23: the sum's last bits are the rounded number */
    x = x > 87.0f ? 87.0f : x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + magic, power = shifted - magic;
    float r = x - power * 0.693359375f + power * 2.12194440e-4f;
    float e = 1.0f + r + r * r * (0.5f + r * (1.6666655e-1f + r * (4.1665796e-2f +
              r * (8.3334519e-3f + r * (1.3981999e-3f + r * 1.9875691e-4f)))));
    union { float f; uint32_t bits; } scale = {.f = shifted};
    scale.bits = (scale.bits << 23) + 0x3f800000u;
    return e * scale.f;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* A layer's parameters or gradients, and where they lie in the vector. */
typedef struct {
    float *input, *hidden, *input_bias, *hidden_bias;
} layer;

static layer layer_at(float *at, int inputs) {
    return (layer){at, at + (size_t)G * inputs, at + (size_t)G * (inputs + H),
                   at + (size_t)G * (inputs + H + 1)};
}

static size_t layer_size(int inputs) { return (size_t)G * (inputs + H + 2); }

/* What the backward pass needs of the forward pass: of each step, gates after their function. */
typedef struct {
    float gates[STEPS][G], cell[STEPS][H], tanh_cell[STEPS][H], out[STEPS][H];
} course;

static float transposed[G * INPUTS];

static void forward(int steps, int inputs, const float *x, layer w, course *c) {
    for (int t = 0; t < steps; t++)
        for (int j = 0; j < G; j++) c->gates[t][j] = w.input_bias[j] + w.hidden_bias[j];
    transpose(G, inputs, w.input, transposed);
    multiply(steps, G, (shape){inputs, inputs, 1, G, G}, x, transposed, c->gates[0]);
    transpose(G, H, w.hidden, transposed);
    for (int t = 0; t < steps; t++) {
        float *g = c->gates[t];
        if (t > 0) vector_matrix(H, G, c->out[t - 1], transposed, g);
        for (int j = 0; j < 2 * H; j++) g[j] = sigmoid(g[j]);
        for (int j = 2 * H; j < 3 * H; j++) g[j] = 2 * sigmoid(2 * g[j]) - 1; /* tanh */
        for (int j = 3 * H; j < G; j++) g[j] = sigmoid(g[j]);
        for (int j = 0; j < H; j++) {
            float before = t > 0 ? c->cell[t - 1][j] : 0;
            c->cell[t][j] = g[H + j] * before + g[j] * g[2 * H + j];
            c->tanh_cell[t][j] = 2 * sigmoid(2 * c->cell[t][j]) - 1;
            c->out[t][j] = g[3 * H + j] * c->tanh_cell[t][j];
        }
    }
}

/* d_out: of each step's output. Gradients of the parameters are set; d_x, unless NULL, too. */
static void backward(int steps, int inputs, const float *x, layer w, const course *c,
                     float d_out[][H], layer d_w, float *d_x) {
    static float d_gates[STEPS][G];
    float d_cell[H] = {0}, d_hidden[H] = {0};
    for (int t = steps - 1; t >= 0; t--) {
        const float *g = c->gates[t];
        float *d = d_gates[t];
        for (int j = 0; j < H; j++) {
            float in = g[j], forget = g[H + j], new = g[2 * H + j], open = g[3 * H + j];
            float y = c->tanh_cell[t][j], before = t > 0 ? c->cell[t - 1][j] : 0;
            float d_h = d_out[t][j] + d_hidden[j], d_c = d_cell[j] + d_h * open * (1 - y * y);
            d[j] = d_c * new * in * (1 - in);
            d[H + j] = d_c * before * forget * (1 - forget);
            d[2 * H + j] = d_c * in * (1 - new * new);
            d[3 * H + j] = d_h * y * open * (1 - open);
            d_cell[j] = d_c * forget;
        }
        memset(d_hidden, 0, sizeof d_hidden);
        if (t > 0) vector_matrix(G, H, d, w.hidden, d_hidden);
    }
    memset(d_w.input, 0, sizeof(float) * layer_size(inputs));
    multiply(G, inputs, (shape){steps, 1, G, inputs, inputs}, d_gates[0], x, d_w.input);
    multiply(G, H, (shape){steps - 1, 1, G, H, H}, d_gates[1], c->out[0], d_w.hidden);
    for (int t = 0; t < steps; t++)
        for (int j = 0; j < G; j++) d_w.input_bias[j] += d_gates[t][j];
    memcpy(d_w.hidden_bias, d_w.input_bias, sizeof(float) * G);
    if (d_x != NULL) {
        memset(d_x, 0, sizeof(float) * steps * inputs);
        multiply(steps, inputs, (shape){G, G, 1, inputs, inputs}, d_gates[0], w.input, d_x);
    }
}

/* logits [steps, classes] become their gradient; the mean loss. A target below 0 does not count. */
static float cross_entropy(int steps, int classes, const int64_t *targets, float *logits) {
    int counting = 0;
    double loss = 0;
    for (int t = 0; t < steps; t++) counting += targets[t] >= 0;
    for (int t = 0; t < steps; t++) {
        float *z = logits + (size_t)t * classes, largest = z[0], total = 0;
        if (targets[t] < 0) {
            memset(z, 0, sizeof(float) * classes);
            continue;
        }
        for (int k = 1; k < classes; k++) largest = z[k] > largest ? z[k] : largest;
        loss -= z[targets[t]] - largest;
        for (int k = 0; k < classes; k++) total += z[k] = exponential(z[k] - largest);
        loss += logf(total);
        for (int k = 0; k < classes; k++) z[k] /= total * counting;
        z[targets[t]] -= 1.0f / counting;
    }
    return counting > 0 ? loss / counting : 0;
}

/* x [steps, inputs], targets [steps] -> the mean loss, and gradient (as long as params, all set).
   steps from 2 to 32, inputs to 256, classes to 512; NaN for others. Not for several threads. */
float speech_gradient(int steps, int inputs, int classes, const float *x, const int64_t *targets,
                      float *params, float *gradient) {
    static course first, second;
    static float logits[STEPS * CLASSES], d_second[STEPS][H], d_first[STEPS][H];
    static float out_transposed[H * CLASSES];
    if (steps < 2 || steps > STEPS || inputs > INPUTS || classes > CLASSES) return NAN;
    size_t at_second = layer_size(inputs), at_out = at_second + layer_size(H);
    layer one = layer_at(params, inputs), two = layer_at(params + at_second, H);
    float *out = params + at_out, *bias = out + (size_t)classes * H;
    float *d_weight = gradient + at_out, *d_bias = d_weight + (size_t)classes * H;

    forward(steps, inputs, x, one, &first);
    forward(steps, H, first.out[0], two, &second);
    for (int t = 0; t < steps; t++) memcpy(logits + (size_t)t * classes, bias, sizeof(float) * classes);
    transpose(classes, H, out, out_transposed);
    multiply(steps, classes, (shape){H, H, 1, classes, classes}, second.out[0], out_transposed, logits);

    float loss = cross_entropy(steps, classes, targets, logits);

    memset(d_weight, 0, sizeof(float) * classes * (H + 1));
    multiply(classes, H, (shape){steps, 1, classes, H, H}, logits, second.out[0], d_weight);
    for (int t = 0; t < steps; t++)
        for (int k = 0; k < classes; k++) d_bias[k] += logits[(size_t)t * classes + k];
    memset(d_second, 0, sizeof d_second);
    multiply(steps, H, (shape){classes, classes, 1, H, H}, logits, out, d_second[0]);
    backward(steps, H, first.out[0], two, &second, d_second, layer_at(gradient + at_second, H),
             d_first[0]);
    backward(steps, inputs, x, one, &first, d_first, layer_at(gradient, inputs), NULL);
    return loss;
}
