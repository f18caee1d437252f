/* The pointwise part of a softmax with its gradient: what lies between its three products.

   Plain C as in cell.c: no threads, no state, no allocation. The caller checks shapes and lifetimes.
   A row is read three times while it is in the cache: for the largest logit, for powers and their
   sum, and for the gradient of the bias.  */

#include "numbers.h"

/* Largest values of so many columns are kept apart: the compiler makes no vector of a single one.  */
#define LANES 64
/* e^x of less is no normal float32 and counts as zero.  */
#define LEAST_EXPONENT -87.0f

/* Some predictions; a row's probabilities are those of its target and of `words` others. Logits are
   float32 or bfloat16, all else float32.  */
struct softmax {
  int64_t rows, words;
  void *logits;          /* rows x words, without bias; become e^(logit + bias - the row's largest) */
  const float *bias;     /* words */
  const int64_t *column; /* rows: a word that does not count, -1 for none */
  const float *target;   /* rows: the target's logit */
  const float *share;    /* rows: the row's weight in what is differentiated */
  float *loss;           /* rows: written, as all that follow */
  float *grad_target;    /* rows: gradient of `target` */
  float *scale;          /* rows: what makes a row's gradient of its powers */
  float *grad_bias;      /* words: added to */
};

INLINE float largest_logit(int64_t words, const void *logits, const float *restrict bias, enum type type)
{
  float most[LANES];
  for (int lane = 0; lane < LANES; lane++)
    most[lane] = -INFINITY;
  const int64_t whole = words - words % LANES;
  for (int64_t word = 0; word < whole; word += LANES)
    for (int lane = 0; lane < LANES; lane++) {
      float logit = load(logits, word + lane, type) + bias[word + lane];
      most[lane] = logit > most[lane] ? logit : most[lane];
    }
  for (int64_t word = whole; word < words; word++) {
    float logit = load(logits, word, type) + bias[word];
    most[0] = logit > most[0] ? logit : most[0];
  }
  float result = most[0];
  for (int lane = 1; lane < LANES; lane++)
    result = most[lane] > result ? most[lane] : result;
  return result;
}

INLINE void softmax(const struct softmax *of, enum type type)
{
  const int64_t words = of->words;
  for (int64_t row = 0; row < of->rows; row++) {
    void *logits = (char *)of->logits + row * words * (type == BFLOAT16 ? 2 : 4);
    const float *restrict bias = of->bias;
    float *restrict grad_bias = of->grad_bias;
    if (of->column[row] >= 0)
      store(logits, of->column[row], -INFINITY, type);
    float largest = largest_logit(words, logits, bias, type), target = of->target[row];
    largest = target > largest ? target : largest;
    float total = 0.0f;
#pragma GCC ivdep
    for (int64_t word = 0; word < words; word++) {
      float below = load(logits, word, type) + bias[word] - largest;
      float power = exponential_within(below, LEAST_EXPONENT, 0.0f);
      power = below < LEAST_EXPONENT ? 0.0f : power;
      store(logits, word, power, type);
      total += power;
    }
    float target_power = expf(target - largest);
    total += target_power;
    const float share = of->share[row], scale = share / total;
    of->loss[row] = logf(total) + largest - target;
    of->grad_target[row] = target_power * scale - share;
    of->scale[row] = scale;
#pragma GCC ivdep
    for (int64_t word = 0; word < words; word++)
      grad_bias[word] += scale * load(logits, word, type);
  }
}

void elmo_softmax_float32(const struct softmax *of) { softmax(of, FLOAT32); }
void elmo_softmax_bfloat16(const struct softmax *of) { softmax(of, BFLOAT16); }
