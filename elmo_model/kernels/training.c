/* What training adds to the C code: the cell with all that its gradient needs, that gradient, and the
   maximum over a word's windows with its gradient.

   Plain C as in cell.c: no threads, no state, no allocation. The caller checks shapes and lifetimes.
   Gates of a row lie as i, j, f, o, `dim` of each.  */

#include "numbers.h"

INLINE float within(float value, float clip)
{
  value = value < -clip ? -clip : value;
  return value > clip ? clip : value;
}

/* One step of some rows. Cells are stored as they are before the clip, since its gradient asks for
   that; `before` is clipped here, unless it is what the layer began with. Gates and outputs are
   float32 or bfloat16, cells float32.  */
struct training_step {
  int64_t rows, dim;
  const void *product;     /* rows x 4 dim: the gates before their activations; forward only */
  void *gates;             /* rows x 4 dim: after them; written forward, read backward */
  const float *before;     /* rows x dim: the cell of the step before */
  float *cell;             /* rows x dim: the new cell before the clip; read backward */
  void *output;            /* rows x dim: written forward, before the projection */
  const void *grad_output; /* rows x dim: backward only, as all that follow */
  float *grad_cell;        /* rows x dim: of the clipped new cell, and then of `before` */
  void *grad_gates;        /* rows x 4 dim: of the product, written */
  float *grad_bias;        /* 4 dim: the sum of the above is added */
  float clip_before, clip; /* infinite for none */
};

INLINE void forward(const struct training_step *step, enum type type)
{
  const int64_t dim = step->dim;
  const float clip_before = step->clip_before, clip = step->clip;
  for (int64_t row = 0; row < step->rows; row++) {
    const int64_t gates = row * 4 * dim, cells = row * dim;
    const void *product = step->product;
    void *restrict active = step->gates, *restrict output = step->output;
    const float *before = step->before + cells;
    float *restrict cell = step->cell + cells;
#pragma GCC ivdep
    for (int64_t d = 0; d < dim; d++) {
      float j_power = exponential(-2.0f * load(product, gates + dim + d, type));
      float i = 1.0f / (1.0f + exponential(-load(product, gates + d, type)));
      float j = (1.0f - j_power) / (1.0f + j_power);
      float f = 1.0f / (1.0f + exponential(-(load(product, gates + 2 * dim + d, type) + FORGET_BIAS)));
      float o = 1.0f / (1.0f + exponential(-load(product, gates + 3 * dim + d, type)));
      float c = f * within(before[d], clip_before) + i * j;
      float power = exponential(-2.0f * within(c, clip));
      store(active, gates + d, i, type);
      store(active, gates + dim + d, j, type);
      store(active, gates + 2 * dim + d, f, type);
      store(active, gates + 3 * dim + d, o, type);
      cell[d] = c;
      store(output, cells + d, o * (1.0f - power) / (1.0f + power), type);
    }
  }
}

INLINE void backward(const struct training_step *step, enum type type)
{
  const int64_t dim = step->dim;
  const float clip_before = step->clip_before, clip = step->clip;
  for (int64_t row = 0; row < step->rows; row++) {
    const int64_t gates = row * 4 * dim, cells = row * dim;
    const void *active = step->gates, *grad_output = step->grad_output;
    void *restrict grad_gates = step->grad_gates;
    const float *before = step->before + cells, *cell = step->cell + cells;
    float *restrict grad_cell = step->grad_cell + cells, *restrict grad_bias = step->grad_bias;
#pragma GCC ivdep
    for (int64_t d = 0; d < dim; d++) {
      float i = load(active, gates + d, type), j = load(active, gates + dim + d, type);
      float f = load(active, gates + 2 * dim + d, type);
      float o = load(active, gates + 3 * dim + d, type);
      float power = exponential(-2.0f * within(cell[d], clip));
      float t = (1.0f - power) / (1.0f + power);
      float grad = load(grad_output, cells + d, type);
      float grad_c = grad_cell[d] + grad * o * (1.0f - t * t);
      /* As torch.clamp: the ends themselves pass.  */
      grad_c = fabsf(cell[d]) > clip ? 0.0f : grad_c;
      float grad_i = grad_c * j * i * (1.0f - i);
      float grad_j = grad_c * i * (1.0f - j * j);
      float grad_f = grad_c * within(before[d], clip_before) * f * (1.0f - f);
      float grad_o = grad * t * o * (1.0f - o);
      /* `before` is stored unclipped: where its own step's clip held it, that step stops this.  */
      grad_cell[d] = grad_c * f;
      store(grad_gates, gates + d, grad_i, type);
      store(grad_gates, gates + dim + d, grad_j, type);
      store(grad_gates, gates + 2 * dim + d, grad_f, type);
      store(grad_gates, gates + 3 * dim + d, grad_o, type);
      grad_bias[d] += grad_i;
      grad_bias[dim + d] += grad_j;
      grad_bias[2 * dim + d] += grad_f;
      grad_bias[3 * dim + d] += grad_o;
    }
  }
}

void elmo_training_forward_float32(const struct training_step *step) { forward(step, FLOAT32); }
void elmo_training_forward_bfloat16(const struct training_step *step) { forward(step, BFLOAT16); }
void elmo_training_backward_float32(const struct training_step *step) { backward(step, FLOAT32); }
void elmo_training_backward_bfloat16(const struct training_step *step) { backward(step, BFLOAT16); }

/* Each filter's largest score over the windows of a word, and the first window that has it. What is
   not a number counts as the largest.  */
INLINE void max_windows(int64_t words, int64_t windows, int64_t filters, const void *scores,
                        int64_t stride, float *best, int32_t *place, enum type type)
{
  for (int64_t word = 0; word < words; word++) {
    float *restrict most = best + word * stride;
    int32_t *restrict where = place + word * stride;
    int64_t start = word * windows * filters;
    for (int64_t k = 0; k < filters; k++) {
      most[k] = load(scores, start + k, type);
      where[k] = 0;
    }
    for (int64_t window = 1; window < windows; window++) {
      start += filters;
#pragma GCC ivdep
      for (int64_t k = 0; k < filters; k++) {
        float score = load(scores, start + k, type), old = most[k];
        int is_more = !(score <= old) & (old == old);
        most[k] = is_more ? score : old;
        where[k] = is_more ? (int32_t)window : where[k];
      }
    }
  }
}

void elmo_max_windows_float32(int64_t words, int64_t windows, int64_t filters, const void *scores,
                              int64_t stride, float *best, int32_t *place)
{
  max_windows(words, windows, filters, scores, stride, best, place, FLOAT32);
}

void elmo_max_windows_bfloat16(int64_t words, int64_t windows, int64_t filters, const void *scores,
                               int64_t stride, float *best, int32_t *place)
{
  max_windows(words, windows, filters, scores, stride, best, place, BFLOAT16);
}

/* Gradient of the convolutions of one width: of all windows of a word, a filter's score came from one
   only. Filters that the activation or dropout stopped have a gradient of zero and cost nothing.  */
struct convolution {
  int64_t words, columns, dim, width, filters;
  int64_t stride;        /* filters of all widths: the row length of `grad` and `place` */
  const int64_t *chars;  /* words x columns, rows of `table` */
  const float *table;    /* characters x dim */
  const float *weight;   /* filters x width x dim */
  const float *grad;     /* words x stride, of the largest scores */
  const int32_t *place;  /* words x stride: the window it came from */
  float *grad_weight;    /* as `weight`, added to */
  float *grad_table;     /* as `table`, added to */
};

INLINE void convolution(const struct convolution *of, int64_t dim)
{
  const int64_t width = of->width;
  for (int64_t word = 0; word < of->words; word++) {
    const int64_t *chars = of->chars + word * of->columns;
    const float *grads = of->grad + word * of->stride;
    const int32_t *places = of->place + word * of->stride;
    for (int64_t filter = 0; filter < of->filters; filter++) {
      const float grad = grads[filter];
      if (grad == 0.0f)
        continue;
      const int64_t *window = chars + places[filter];
      const float *restrict weight = of->weight + filter * width * dim;
      float *restrict grad_weight = of->grad_weight + filter * width * dim;
      for (int64_t k = 0; k < width; k++) {
        const float *restrict row = of->table + window[k] * dim;
        float *restrict grad_row = of->grad_table + window[k] * dim;
        for (int64_t e = 0; e < dim; e++) {
          grad_weight[k * dim + e] += grad * row[e];
          grad_row[e] += grad * weight[k * dim + e];
        }
      }
    }
  }
}

void elmo_convolution_gradient(const struct convolution *of)
{
  /* The width of all released models, known to the compiler.  */
  if (of->dim == 16)
    convolution(of, 16);
  else
    convolution(of, of->dim);
}
