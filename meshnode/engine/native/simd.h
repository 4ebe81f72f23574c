// Sixteen floats, and the few things that are done with them, with the same bits on every machine.
//
// Only operations that IEEE 754 defines to the last bit are here: + - * / and fused multiply-add, each rounded once.
// No reciprocal estimates, no library functions, no contraction left to the compiler (-ffp-contract=off). Whoever adds a
// kernel adds lanes up with `v_sum`, in its one order. So a class of arithmetic is a version number of this folder, and
// not the name of an instruction set.

#ifndef MESHNODE_SIMD_H
#define MESHNODE_SIMD_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX2__)
#include <immintrin.h>
#endif

INLINE float float_of(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE uint32_t bits_of(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

// bfloat16, to nearest, ties to even. NaN keeps its sign and stays NaN.
INLINE uint16_t bf16_of(float f) {
    uint32_t bits = bits_of(f);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if defined(__AVX512F__)

typedef __m512 V;
typedef __m512i VI;
INLINE V v_set(float f) { return _mm512_set1_ps(f); }
INLINE V v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, V a) { _mm512_storeu_ps(p, a); }
INLINE V v_add(V a, V b) { return _mm512_add_ps(a, b); }
INLINE V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
INLINE V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
INLINE V v_div(V a, V b) { return _mm512_div_ps(a, b); }
INLINE V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V v_max(V a, V b) { return _mm512_max_ps(a, b); }
INLINE V v_min(V a, V b) { return _mm512_min_ps(a, b); }
INLINE V v_abs(V a) { return _mm512_abs_ps(a); }
INLINE VI v_int(V a) { return _mm512_cvtps_epi32(a); }
INLINE V v_float(VI a) { return _mm512_cvtepi32_ps(a); }
INLINE V v_power(VI n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)); }
INLINE V v_zero_below(V a, V x, float least) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_NLT_UQ), a); }
INLINE V v_lanes(V a, int from, int to, float other) {
    uint32_t mask = (to >= 16 ? 0xffffu : (1u << (to < 0 ? 0 : to)) - 1) & ~((1u << (from > 16 ? 16 : from < 0 ? 0 : from)) - 1);
    return _mm512_mask_mov_ps(_mm512_set1_ps(other), (__mmask16)mask, a);
}
INLINE void v_load_pairs(const uint16_t *p, V *even, V *odd) {
    __m512i both = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}
INLINE void v_store_levels(VI q, uint8_t *high, uint8_t *low) {
    __m512i up = _mm512_add_epi32(_mm512_srai_epi32(q, 8), _mm512_set1_epi32(128));
    _mm_storeu_si128((__m128i *)high, _mm512_cvtepi32_epi8(up));
    _mm_storeu_si128((__m128i *)low, _mm512_cvtepi32_epi8(q));
}
INLINE void v_store_level(VI q, uint8_t *high) {
    _mm_storeu_si128((__m128i *)high, _mm512_cvtepi32_epi8(_mm512_add_epi32(q, _mm512_set1_epi32(128))));
}
INLINE float sum8(__m256 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
INLINE float v_sum(V a) {
    return sum8(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
INLINE float v_greatest(V a) { return _mm512_reduce_max_ps(a); }

#elif defined(__AVX2__)

typedef struct { __m256 a, b; } V;
typedef struct { __m256i a, b; } VI;
#define EACH(op) (V){op(x.a, y.a), op(x.b, y.b)}
INLINE V v_set(float f) { return (V){_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
INLINE V v_load(const float *p) { return (V){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void v_store(float *p, V x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
INLINE V v_add(V x, V y) { return EACH(_mm256_add_ps); }
INLINE V v_sub(V x, V y) { return EACH(_mm256_sub_ps); }
INLINE V v_mul(V x, V y) { return EACH(_mm256_mul_ps); }
INLINE V v_div(V x, V y) { return EACH(_mm256_div_ps); }
INLINE V v_max(V x, V y) { return EACH(_mm256_max_ps); }
INLINE V v_min(V x, V y) { return EACH(_mm256_min_ps); }
INLINE V v_fma(V x, V y, V z) { return (V){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE V v_abs(V x) { V y = v_set(-0.0f); return (V){_mm256_andnot_ps(y.a, x.a), _mm256_andnot_ps(y.b, x.b)}; }
INLINE VI v_int(V x) { return (VI){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
INLINE V v_float(VI x) { return (V){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE __m256 power8(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
INLINE V v_power(VI n) { return (V){power8(n.a), power8(n.b)}; }
INLINE V v_zero_below(V x, V of, float least) {
    __m256 bound = _mm256_set1_ps(least);
    return (V){_mm256_and_ps(x.a, _mm256_cmp_ps(of.a, bound, _CMP_NLT_UQ)), _mm256_and_ps(x.b, _mm256_cmp_ps(of.b, bound, _CMP_NLT_UQ))};
}
INLINE V v_lanes(V x, int from, int to, float other) {
    float kept[16];
    v_store(kept, x);
    for (int i = 0; i < 16; i++) kept[i] = i >= from && i < to ? kept[i] : other;
    return v_load(kept);
}
INLINE __m256 even8(__m256i both) { return _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)); }
INLINE __m256 odd8(__m256i both) { return _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000))); }
INLINE void v_load_pairs(const uint16_t *p, V *even, V *odd) {
    __m256i x = _mm256_loadu_si256((const __m256i *)p), y = _mm256_loadu_si256((const __m256i *)(p + 16));
    *even = (V){even8(x), even8(y)};
    *odd = (V){odd8(x), odd8(y)};
}
INLINE void v_store_levels(VI q, uint8_t *high, uint8_t *low) {
    int32_t of[16];
    _mm256_storeu_si256((__m256i *)of, q.a);
    _mm256_storeu_si256((__m256i *)(of + 8), q.b);
    for (int i = 0; i < 16; i++) high[i] = (uint8_t)((of[i] >> 8) + 128), low[i] = (uint8_t)of[i];
}
INLINE void v_store_level(VI q, uint8_t *high) {
    int32_t of[16];
    _mm256_storeu_si256((__m256i *)of, q.a);
    _mm256_storeu_si256((__m256i *)(of + 8), q.b);
    for (int i = 0; i < 16; i++) high[i] = (uint8_t)(of[i] + 128);
}
INLINE float v_sum(V x) {
    __m256 a = _mm256_add_ps(x.a, x.b);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
INLINE float v_greatest(V x) {
    float of[16], found;
    v_store(of, x);
    found = of[0];
    for (int i = 1; i < 16; i++) found = of[i] > found ? of[i] : found;
    return found;
}
#undef EACH

#else  // any machine with a C compiler; where it has a fused multiply-add of its own, the loops below become it

typedef struct { float f[16]; } V;
typedef struct { int32_t i[16]; } VI;
#define EACH(expression) V r; for (int i = 0; i < 16; i++) r.f[i] = expression; return r
INLINE V v_set(float f) { EACH(f); }
INLINE V v_load(const float *p) { V r; memcpy(&r, p, sizeof r); return r; }
INLINE void v_store(float *p, V x) { memcpy(p, &x, sizeof x); }
INLINE V v_add(V x, V y) { EACH(x.f[i] + y.f[i]); }
INLINE V v_sub(V x, V y) { EACH(x.f[i] - y.f[i]); }
INLINE V v_mul(V x, V y) { EACH(x.f[i] * y.f[i]); }
INLINE V v_div(V x, V y) { EACH(x.f[i] / y.f[i]); }
INLINE V v_max(V x, V y) { EACH(x.f[i] > y.f[i] ? x.f[i] : y.f[i]); }
INLINE V v_min(V x, V y) { EACH(x.f[i] < y.f[i] ? x.f[i] : y.f[i]); }
INLINE V v_fma(V x, V y, V z) { EACH(__builtin_fmaf(x.f[i], y.f[i], z.f[i])); }
INLINE V v_abs(V x) { EACH(__builtin_fabsf(x.f[i])); }
INLINE V v_float(VI x) { EACH((float)x.i[i]); }
INLINE V v_power(VI x) { EACH(float_of((uint32_t)(x.i[i] + 127) << 23)); }
INLINE V v_zero_below(V x, V of, float least) { EACH(of.f[i] < least ? 0.0f : x.f[i]); }
INLINE V v_lanes(V x, int from, int to, float other) { EACH(i >= from && i < to ? x.f[i] : other); }
INLINE VI v_int(V x) { VI r; for (int i = 0; i < 16; i++) r.i[i] = (int32_t)__builtin_rintf(x.f[i]); return r; }
INLINE void v_load_pairs(const uint16_t *p, V *even, V *odd) {
    for (int i = 0; i < 16; i++) {
        even->f[i] = float_of((uint32_t)p[2 * i] << 16);
        odd->f[i] = float_of((uint32_t)p[2 * i + 1] << 16);
    }
}
INLINE void v_store_levels(VI q, uint8_t *high, uint8_t *low) {
    for (int i = 0; i < 16; i++) high[i] = (uint8_t)((q.i[i] >> 8) + 128), low[i] = (uint8_t)q.i[i];
}
INLINE void v_store_level(VI q, uint8_t *high) { for (int i = 0; i < 16; i++) high[i] = (uint8_t)(q.i[i] + 128); }
INLINE float v_sum(V x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x.f[i] += x.f[i + half];
    return x.f[0];
}
INLINE float v_greatest(V x) {
    float found = x.f[0];
    for (int i = 1; i < 16; i++) found = x.f[i] > found ? x.f[i] : found;
    return found;
}
#undef EACH

#endif

// e^x, within 2 units in the last place, by Cephes' polynomial; exactly 0 below -87, exactly 1 at 0.
INLINE V v_exp(V x) {
    V held = v_min(v_set(88.0f), v_max(v_set(-87.0f), x));  // in this order NaN stays NaN
    VI n = v_int(v_mul(held, v_set(1.44269504088896341f)));
    V whole = v_float(n);
    V r = v_fma(whole, v_set(-0.693359375f), held);
    r = v_fma(whole, v_set(2.12194440e-4f), r);
    V p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    return v_zero_below(v_mul(p, v_power(n)), x, -87.0f);
}

#endif
