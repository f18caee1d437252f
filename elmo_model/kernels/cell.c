/* One pass over the gates of one time step: sum, bias, activations, clip, new cell, output.

   Plain C for any vector unit: the loops over units are written so that the compiler turns each into
   vector instructions. No threads, no state, no allocation. The caller checks shapes and lifetimes.

   Gates of a row lie as i, j, f, o, `dim` of each. A row's gates are

       product_scale * product[row] + input[index or row] + bias

   with what is NULL left out.  */

#include <float.h>

#include "numbers.h"

/* Quantises one row: value = scale * (stored - 128), the largest magnitude at 127. A row with an
   element that is no finite number gets a scale that is none, so that it does not look like one.  */
INLINE void quantise(int64_t dim, const float *restrict values, uint8_t *restrict stored,
                     float *scale)
{
  /* Without their sign, floats are ordered as their bits are; infinity and what is no number come
     last.  */
  uint32_t bits = 0;
  for (int64_t d = 0; d < dim; d++) {
    uint32_t size = to_bits(values[d]) & 0x7fffffffu;
    bits = size > bits ? size : bits;
  }
  float largest = from_bits(bits);
  if (!(largest <= FLT_MAX)) {
    memset(stored, 128, (size_t)dim);
    *scale = NAN;
    return;
  }
  float factor = largest > 0.0f ? 127.0f / largest : 0.0f;
  for (int64_t d = 0; d < dim; d++)
    stored[d] = (uint8_t)((int32_t)rintf(values[d] * factor) + 128);
  *scale = largest / 127.0f;
}

struct step {
  int64_t rows, dim;
  const void *product;        /* rows of gates, 4 dim wide */
  const float *product_scale; /* a factor for each row, if what was multiplied is quantised */
  const void *input;          /* table or rows of gates, 4 dim wide, or NULL */
  const int64_t *index;       /* a row's place in `input`; NULL: its own number */
  const float *bias;          /* 4 dim, or NULL; only beside product_scale */
  float *cell;                /* rows x dim: read and written */
  void *output;               /* rows x dim */
  float *output_scale;        /* a factor for each row, if the output is quantised */
  float *scratch;             /* dim floats, if the output is quantised */
  float clip;                 /* infinite for none */
};

INLINE void run(const struct step *step, enum type gate_type, enum type output_type, int has_input,
                int has_bias)
{
  const int64_t dim = step->dim;
  const float clip = step->clip;
  for (int64_t row = 0; row < step->rows; row++) {
    int64_t place = step->index ? step->index[row] : row;
    int64_t input = place * 4 * dim, product = row * 4 * dim;
    float scale = output_type == UINT8 ? step->product_scale[row] : 1.0f;
    const void *inputs = step->input, *products = step->product;
    const float *bias = step->bias;
    float *restrict cell = step->cell + row * dim;
    float *restrict wide = output_type == UINT8 ? step->scratch : (float *)step->output + row * dim;
    uint16_t *restrict narrow = (uint16_t *)step->output + row * dim;
#pragma GCC ivdep
    for (int64_t d = 0; d < dim; d++) {
      float gate[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        gate[k] = load(products, product + k * dim + d, gate_type);
        if (output_type == UINT8)
          gate[k] *= scale;
        if (has_input)
          gate[k] += load(inputs, input + k * dim + d, gate_type);
        if (has_bias)
          gate[k] += bias[k * dim + d];
      }
      float i = exponential(-gate[0]);
      float j = exponential(-2.0f * gate[1]);
      float f = exponential(-(gate[2] + FORGET_BIAS));
      float o = exponential(-gate[3]);
      float c = cell[d] / (1.0f + f) + (1.0f - j) / ((1.0f + i) * (1.0f + j));
      c = c < -clip ? -clip : c;
      c = c > clip ? clip : c;
      float t = exponential(-2.0f * c);
      float h = (1.0f - t) / ((1.0f + o) * (1.0f + t));
      cell[d] = c;
      if (output_type == BFLOAT16)
        narrow[d] = to_bfloat16(h);
      else
        wide[d] = h;
    }
    if (output_type == UINT8)
      quantise(dim, step->scratch, (uint8_t *)step->output + row * dim, step->output_scale + row);
  }
}

void elmo_cell_float32(const struct step *step)
{
  if (step->input)
    run(step, FLOAT32, FLOAT32, 1, 0);
  else
    run(step, FLOAT32, FLOAT32, 0, 0);
}

void elmo_cell_bfloat16(const struct step *step)
{
  if (step->input)
    run(step, BFLOAT16, BFLOAT16, 1, 0);
  else
    run(step, BFLOAT16, BFLOAT16, 0, 0);
}

void elmo_cell_int8(const struct step *step)
{
  if (step->input)
    run(step, BFLOAT16, UINT8, 1, 0);
  else
    run(step, BFLOAT16, UINT8, 0, 1);
}

void elmo_quantise(int64_t rows, int64_t width, const float *values, uint8_t *stored, float *scale)
{
  for (int64_t row = 0; row < rows; row++)
    quantise(width, values + row * width, stored + row * width, scale + row);
}
