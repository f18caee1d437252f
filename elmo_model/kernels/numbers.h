/* Numbers as the C code of this folder reads, rounds and exponentiates them. bfloat16 is rounded to
   nearest even, as torch does.  */

#ifndef ELMO_NUMBERS_H
#define ELMO_NUMBERS_H

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

INLINE void store(void *values, int64_t place, float value, enum type type)
{
  if (type == BFLOAT16)
    ((uint16_t *)values)[place] = to_bfloat16(value);
  else
    ((float *)values)[place] = value;
}

/* e^x to 2e-7 of its size for `least` <= x <= `most`, both within 87 of zero; beyond, that of the
   nearer end. Not a number stays that: the comparisons are written for it.  */
INLINE float exponential_within(float x, float least, float most)
{
  x = x < least ? least : x;
  x = x > most ? most : x;
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

/* e^x between -40 and 40, so that no product of two overflows.  */
INLINE float exponential(float x) { return exponential_within(x, -40.0f, 40.0f); }

#endif
