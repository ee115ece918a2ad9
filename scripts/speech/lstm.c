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

typedef float lane __attribute__((vector_size(4 * VECTOR)));
typedef float anywhere __attribute__((vector_size(4 * VECTOR), aligned(4), may_alias)); /* a lane in an array of floats */
typedef int32_t lane_index __attribute__((vector_size(4 * VECTOR)));
enum { LANE = VECTOR, ROWS = 4, LANES = 3 };
#define PADDED(n) (((n) + LANE - 1) / LANE * LANE)
#define INLINE static inline __attribute__((always_inline))

/* C [m, n] = A [m, k] B [k, n], plus `add`. a_row, a_column: strides of A; b_row, c_row: of B's and C's rows.
   B's rows are readable up to PADDED(n). add: a row for each of C's, or, with add_row 0, the same for all; or NULL. */
typedef struct {
    int k, a_row, a_column, b_row, c_row, add_row;
    const float *add;
} shape;

/* `rows` rows of C, `lanes` vectors wide (both constants where this is inlined); of the last vector `last` floats. */
INLINE lane load(const float *at) { return *(const anywhere *)at; }
INLINE void store(float *at, lane v) { *(anywhere *)at = v; }

INLINE lane load_part(const float *at, int floats) {
    lane v = {0};
    memcpy(&v, at, floats * sizeof(float));
    return v;
}

INLINE void tile(int rows, int lanes, int last, const shape *s, const float *a, const float *b, const float *add, float *c) {
    lane sum[ROWS][LANES];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < lanes; v++) sum[r][v] = (lane){0};
    for (int r = 0; r < rows && add != NULL; r++)
        for (int v = 0; v < lanes; v++)
            sum[r][v] = v < lanes - 1 || last == LANE ? load(add + (size_t)r * s->add_row + v * LANE)
                                                      : load_part(add + (size_t)r * s->add_row + v * LANE, last);
    for (int l = 0; l < s->k; l++) {
        lane row[LANES];
        for (int v = 0; v < lanes; v++) row[v] = load(b + (size_t)l * s->b_row + v * LANE);
        for (int r = 0; r < rows; r++) {
            float x = a[(size_t)r * s->a_row + (size_t)l * s->a_column];
            for (int v = 0; v < lanes; v++) sum[r][v] += x * row[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < lanes; v++)
            if (v < lanes - 1 || last == LANE)
                store(c + (size_t)r * s->c_row + v * LANE, sum[r][v]);
            else
                memcpy(c + (size_t)r * s->c_row + v * LANE, &sum[r][v], last * sizeof(float));
}

INLINE void tiles(int rows, int n, const shape *s, const float *a, const float *b, const float *add, float *c) {
    int j = 0;
    const float *plus = add;
    for (; j + LANES * LANE <= n; j += LANES * LANE, plus += add ? LANES * LANE : 0)
        tile(rows, LANES, LANE, s, a, b + j, plus, c + j);
    for (; j + LANE <= n; j += LANE, plus += add ? LANE : 0) tile(rows, 1, LANE, s, a, b + j, plus, c + j);
    if (j < n) tile(rows, 1, n - j, s, a, b + j, plus, c + j);
}

static void multiply(int m, int n, shape s, const float *a, const float *b, float *c) {
    int i = 0;
    for (; i + ROWS <= m; i += ROWS)
        tiles(ROWS, n, &s, a + (size_t)i * s.a_row, b, s.add ? s.add + (size_t)i * s.add_row : NULL, c + (size_t)i * s.c_row);
    for (; i < m; i++)
        tiles(1, n, &s, a + (size_t)i * s.a_row, b, s.add ? s.add + (size_t)i * s.add_row : NULL, c + (size_t)i * s.c_row);
}

/* Rows of LANE vectors become columns: in round b, lanes whose numbers differ in bit b change places. */
INLINE void transpose_block(lane v[LANE]) {
#pragma GCC unroll 4
    for (int bit = 1; bit < LANE; bit *= 2) {
        lane_index low, high;
#pragma GCC unroll 16
        for (int l = 0; l < LANE; l++) {
            low[l] = l & bit ? LANE + l - bit : l;
            high[l] = l & bit ? LANE + l : l + bit;
        }
#pragma GCC unroll 16
        for (int r = 0; r < LANE; r++) {
            if (r & bit) continue;
            lane first = v[r], second = v[r + bit];
            v[r] = __builtin_shuffle(first, second, low);
            v[r + bit] = __builtin_shuffle(first, second, high);
        }
    }
}

/* out [columns, PADDED(rows)] = in [rows, columns]; what pads is 0 */
static void transpose(int rows, int columns, const float *in, float *out) {
    int width = PADDED(rows);
    for (int j = 0; j < columns; j += LANE)
        for (int i = 0; i < rows; i += LANE) {
            int high = rows - i < LANE ? rows - i : LANE, wide = columns - j < LANE ? columns - j : LANE;
            lane block[LANE];
            for (int r = 0; r < LANE; r++)
                block[r] = r >= high      ? (lane){0}
                           : wide == LANE ? load(in + (size_t)(i + r) * columns + j)
                                          : load_part(in + (size_t)(i + r) * columns + j, wide);
            transpose_block(block);
            for (int r = 0; r < wide; r++) store(out + (size_t)(j + r) * width + i, block[r]);
        }
}

/* y [n] += x [k] W [k, n], n a multiple of LANE, k of 2 */
INLINE void vector_matrix_part(int lanes, int k, int n, const float *x, const float *w, float *y) {
    lane even[2 * LANES], odd[2 * LANES];
    for (int s = 0; s < lanes; s++) even[s] = load(y + s * LANE), odd[s] = (lane){0};
    for (int l = 0; l < k; l += 2)
        for (int s = 0; s < lanes; s++) {
            even[s] += x[l] * load(w + (size_t)l * n + s * LANE);
            odd[s] += x[l + 1] * load(w + (size_t)(l + 1) * n + s * LANE);
        }
    for (int s = 0; s < lanes; s++) store(y + s * LANE, even[s] + odd[s]);
}

static void vector_matrix(int k, int n, const float *x, const float *w, float *y) {
    enum { WIDE = 2 * LANES };
    int j = 0;
    for (; j + WIDE * LANE <= n; j += WIDE * LANE) vector_matrix_part(WIDE, k, n, x, w + j, y + j);
    for (; j < n; j += LANE) vector_matrix_part(1, k, n, x, w + j, y + j);
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

static float transposed[G * (H > INPUTS ? H : INPUTS)]; /* the second layer has H inputs */

/* x: rows of `width` floats, of which `inputs` count */
static void forward(int steps, int inputs, int width, const float *x, layer w, course *c) {
    float bias[G];
    for (int j = 0; j < G; j++) bias[j] = w.input_bias[j] + w.hidden_bias[j];
    transpose(G, inputs, w.input, transposed);
    multiply(steps, G, (shape){inputs, width, 1, G, G, 0, bias}, x, transposed, c->gates[0]);
    for (int q = 0; q < 4; q++) transpose(H, H, w.hidden + q * H * H, transposed + q * H * H);
    for (int t = 0; t < steps; t++) {
        float *g = c->gates[t];
        for (int q = 0; q < 4 && t > 0; q++) vector_matrix(H, H, c->out[t - 1], transposed + q * H * H, g + q * H);
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
static void backward(int steps, int inputs, int width, const float *x, layer w, const course *c, float d_out[][H],
                     layer d_w, float *d_x) {
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
    multiply(G, inputs, (shape){.k = steps, .a_row = 1, .a_column = G, .b_row = width, .c_row = inputs}, d_gates[0], x,
             d_w.input);
    multiply(G, H, (shape){.k = steps - 1, .a_row = 1, .a_column = G, .b_row = H, .c_row = H}, d_gates[1], c->out[0],
             d_w.hidden);
    memset(d_w.input_bias, 0, sizeof(float) * G);
    for (int t = 0; t < steps; t++)
        for (int j = 0; j < G; j++) d_w.input_bias[j] += d_gates[t][j];
    memcpy(d_w.hidden_bias, d_w.input_bias, sizeof(float) * G);
    if (d_x != NULL)
        multiply(steps, inputs, (shape){.k = G, .a_row = G, .a_column = 1, .b_row = inputs, .c_row = inputs}, d_gates[0],
                 w.input, d_x);
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
    static int last_width;
    static float padded[STEPS * PADDED(INPUTS)], out_transposed[H * PADDED(CLASSES)];
    if (steps < 2 || steps > STEPS || inputs > INPUTS || classes > CLASSES) return NAN;
    size_t at_second = layer_size(inputs), at_out = at_second + layer_size(H);
    layer one = layer_at(params, inputs), two = layer_at(params + at_second, H);
    float *out = params + at_out, *bias = out + (size_t)classes * H;
    float *d_weight = gradient + at_out, *d_bias = d_weight + (size_t)classes * H;

    int width = PADDED(inputs); /* what pads is never written: 0 */
    if (width != last_width) memset(padded, 0, sizeof padded), last_width = width;
    for (int t = 0; t < steps; t++)
        memcpy(padded + (size_t)t * width, x + (size_t)t * inputs, sizeof(float) * inputs);
    forward(steps, inputs, width, padded, one, &first);
    forward(steps, H, H, first.out[0], two, &second);
    transpose(classes, H, out, out_transposed);
    multiply(steps, classes, (shape){H, H, 1, PADDED(classes), classes, 0, bias}, second.out[0], out_transposed, logits);

    float loss = cross_entropy(steps, classes, targets, logits);

    multiply(classes, H, (shape){.k = steps, .a_row = 1, .a_column = classes, .b_row = H, .c_row = H}, logits,
             second.out[0], d_weight);
    memset(d_bias, 0, sizeof(float) * classes);
    for (int t = 0; t < steps; t++)
        for (int k = 0; k < classes; k++) d_bias[k] += logits[(size_t)t * classes + k];
    multiply(steps, H, (shape){.k = classes, .a_row = classes, .a_column = 1, .b_row = H, .c_row = H}, logits, out,
             d_second[0]);
    backward(steps, H, H, first.out[0], two, &second, d_second, layer_at(gradient + at_second, H), d_first[0]);
    backward(steps, inputs, width, padded, one, &first, d_first, layer_at(gradient, inputs), NULL);
    return loss;
}
