/* One pass over the gates of one time step: sum, bias, activations, clip, new cell, output.

   Plain C for any vector unit: the loops over units are written so that the compiler turns each into
   vector instructions. No threads, no state, no allocation. The caller checks shapes and lifetimes.

   Gates of a row lie as i, j, f, o, `dim` of each. A row's gates are

       input_scale * input[index or row] + recurrent_scale * recurrent[row] + bias

   with what is NULL left out. bfloat16 is rounded to nearest even, as torch does.  */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define FORGET_BIAS 1.0f
#define INLINE static inline __attribute__((always_inline))

enum type { FLOAT32 = 0, BFLOAT16 = 1, UINT8 = 2 };

INLINE float from_bits(uint32_t bits)
{
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE uint32_t to_bits(float value)
{
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

INLINE float load(const void *values, int64_t place, enum type type)
{
  if (type == BFLOAT16)
    return from_bits((uint32_t)((const uint16_t *)values)[place] << 16);
  return ((const float *)values)[place];
}

INLINE uint16_t to_bfloat16(float value)
{
  uint32_t bits = to_bits(value);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* e^x to 2e-7 of its size for |x| < 40; beyond, that of the nearer end, so that no product of two
   overflows. Not a number stays that: the comparisons are written for it.  */
INLINE float exponential(float x)
{
  x = x < -40.0f ? -40.0f : x;
  x = x > 40.0f ? 40.0f : x;
  float power = rintf(x * 1.44269504f);
  float rest = fmaf(power, -0.693145752f, x);
  rest = fmaf(power, -1.42860677e-6f, rest);
  float sum = 1.98756915e-4f;
  sum = fmaf(sum, rest, 1.39819995e-3f);
  sum = fmaf(sum, rest, 8.33345191e-3f);
  sum = fmaf(sum, rest, 4.16657962e-2f);
  sum = fmaf(sum, rest, 1.66666657e-1f);
  sum = fmaf(sum, rest, 5.0e-1f);
  sum = fmaf(sum * rest, rest, rest) + 1.0f;
  return sum * from_bits((uint32_t)((int32_t)power + 127) << 23);
}

/* Quantises one row: value = scale * (stored - 128), the largest magnitude at 127.  */
INLINE void quantise(int64_t dim, const float *restrict values, uint8_t *restrict stored,
                     float *scale)
{
  float largest = 0.0f;
  for (int64_t d = 0; d < dim; d++) {
    float size = fabsf(values[d]);
    largest = size > largest ? size : largest;
  }
  float factor = largest > 0.0f ? 127.0f / largest : 0.0f;
  for (int64_t d = 0; d < dim; d++)
    stored[d] = (uint8_t)((int32_t)rintf(values[d] * factor) + 128);
  *scale = largest / 127.0f;
}

struct step {
  int64_t rows, dim;
  const void *input;            /* table or rows of gates, 4 dim wide */
  const int64_t *index;         /* a row's place in `input`; NULL: its own number */
  const float *input_scale;     /* a factor for each row of `input`, or NULL */
  const void *recurrent;        /* rows of gates, 4 dim wide */
  const float *recurrent_scale; /* a factor for each row, or NULL */
  const float *bias;            /* 4 dim, or NULL */
  float *cell;                  /* rows x dim: read and written */
  void *output;                 /* rows x dim */
  float *output_scale;          /* a factor for each row, if the output is quantised */
  float *scratch;               /* dim floats, if the output is quantised */
  float clip;                   /* infinite for none */
};

INLINE void run(const struct step *step, enum type input_type, enum type recurrent_type,
                enum type output_type, int scaled)
{
  const int64_t dim = step->dim;
  const float clip = step->clip;
  for (int64_t row = 0; row < step->rows; row++) {
    int64_t place = step->index ? step->index[row] : row;
    int64_t input = place * 4 * dim, recurrent = row * 4 * dim;
    float x = scaled && step->input_scale ? step->input_scale[place] : 1.0f;
    float m = scaled ? step->recurrent_scale[row] : 1.0f;
    const void *inputs = step->input, *recurrents = step->recurrent;
    const float *bias = step->bias;
    float *restrict cell = step->cell + row * dim;
    float *restrict wide = output_type == UINT8 ? step->scratch : (float *)step->output + row * dim;
    uint16_t *restrict narrow = (uint16_t *)step->output + row * dim;
#pragma GCC ivdep
    for (int64_t d = 0; d < dim; d++) {
      float gate[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        float a = load(inputs, input + k * dim + d, input_type);
        float b = load(recurrents, recurrent + k * dim + d, recurrent_type);
        gate[k] = scaled ? fmaf(m, b, x * a) : a + b;
        if (scaled)
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

void elmo_cell_float32(const struct step *step) { run(step, FLOAT32, FLOAT32, FLOAT32, 0); }

void elmo_cell_bfloat16(const struct step *step) { run(step, BFLOAT16, BFLOAT16, BFLOAT16, 0); }

/* Input gates float32: those of words are exact, those of layers carry a scale for each row.  */
void elmo_cell_int8(const struct step *step) { run(step, FLOAT32, FLOAT32, UINT8, 1); }

/* What the projection gave: scaled, clipped, kept as float32 and quantised for the next product.  */
void elmo_project_int8(int64_t rows, int64_t width, const float *products, const float *scale,
                       float clip, float *output, uint8_t *stored, float *stored_scale)
{
  for (int64_t row = 0; row < rows; row++) {
    const float *restrict from = products + row * width;
    float *restrict to = output + row * width;
    float factor = scale ? scale[row] : 1.0f;
    for (int64_t p = 0; p < width; p++) {
      float value = factor * from[p];
      value = value < -clip ? -clip : value;
      to[p] = value > clip ? clip : value;
    }
    quantise(width, to, stored + row * width, stored_scale + row);
  }
}

int elmo_cell_version(void) { return 1; }
