// Vectors of eight floats, and what the kernels do with them, in GCC's and Clang's vector extensions: the same source
// becomes AVX2, AVX-512 or NEON by the compiler's choice. Two operations name instructions: `multiply_add`, because GCC
// fuses products and sums in some functions and not in others, and then the same sum has other bits; `multiply_pairs`,
// because no expression becomes it.
//
// Sixteen elements are read at a time, as two vectors, `first` and `second`. For float these are the lower and the upper
// eight. For bf16 they are the even and the odd ones: then a shift and a mask widen them, and nothing is shuffled. A dot
// product does not care as long as both sides have the same order; `element` tells which element a place holds.
//
// Does not do: lengths that are no multiple of 16. Callers refuse them.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>

namespace {

constexpr int LANES = 8, STEP = 2 * LANES;

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef int8_t SignedBytes __attribute__((vector_size(32)));
typedef float Quad __attribute__((vector_size(16)));

struct bf16 {
  uint16_t bits;
};

// Loops over a few registers must be unrolled whole, or the registers become memory.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 8")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
#endif

// What is inlined into a larger function gets fewer registers.
#define NOT_INLINED __attribute__((noinline))

template <class T>
struct Buffer {  // uninitialised, at the start of a cache line
  explicit Buffer(int64_t size) : data(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  T* data;
};

template <class Vector>
inline Vector load(const void* from) {
  Vector vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class Vector>
inline void store(void* to, Vector vector) {
  memcpy(to, &vector, sizeof vector);
}

// The value, in a register from here on. A vector GCC would rather load again for each use, or all of a loop's at its
// start; a product it would fuse with the sum that follows, or not.
template <class Value>
inline Value held(Value value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#endif
  return value;
}

inline Floats first(const float* p) { return load<Floats>(p); }
inline Floats second(const float* p) { return load<Floats>(p + LANES); }
inline Floats first(const bf16* p) { return (Floats)(load<Words>(p) << 16); }
inline Floats second(const bf16* p) { return (Floats)(load<Words>(p) & 0xffff0000u); }

// Which of 16 elements of type T lies at place `i` of `first` and `second`.
template <class T>
constexpr int element(int i) {
  return sizeof(T) == 4 ? i : i < LANES ? 2 * i : 2 * (i - LANES) + 1;
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  return load<float>(&bits);
}

// To the nearest, ties to even; a NaN stays one.
template <class T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline bf16 narrow<bf16>(float x) {
  uint32_t bits = load<uint32_t>(&x);
  return {uint16_t(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// What `narrow` and `widen` make of a vector.
template <class T>
inline Floats rounded(Floats x);
template <>
inline Floats rounded<float>(Floats x) {
  return x;
}

// Undoes `first` and `second`: sixteen elements, widened by one or the other, back to memory.
inline void store_both(float* to, Floats first, Floats second) {
  store(to, first);
  store(to + LANES, second);
}
inline Words rounded_bits(Floats x) {
  const Words bits = (Words)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x == x ? rounded : (Words){} + 0x7fc0;
}
template <>
inline Floats rounded<bf16>(Floats x) {
  return (Floats)(rounded_bits(x) << 16);
}
inline void store_both(bf16* to, Floats first, Floats second) {
  store(to, rounded_bits(first) | rounded_bits(second) << 16);
}

// A finite IEEE half, by moving its bits to where a float has them; 2^112 makes up for the exponents' different bias.
inline float widen_half(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  const float value = load<float>(&magnitude) * 0x1p112f;
  return half & 0x8000 ? -value : value;
}

// Eight of them.
inline Floats widen_halves(const uint16_t* from) {
#if defined(__F16C__)
  typedef short Eight __attribute__((vector_size(16)));
  return (Floats)__builtin_ia32_vcvtph2ps256(load<Eight>(from));
#else
  typedef uint16_t Eight __attribute__((vector_size(16)));
  const Words bits = __builtin_convertvector(load<Eight>(from), Words);
  const Floats magnitude = (Floats)((bits & 0x7fff) << 13) * 0x1p112f;
  return (Floats)((Words)magnitude | (bits & 0x8000) << 16);
#endif
}

inline Floats broadcast(float x) { return x - Floats{}; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// a b + c, rounded once where the processor can.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__FMA__)
  return (Floats)__builtin_ia32_vfmaddps256(a, b, c);
#else
  return a * b + c;
#endif
}

// The sum over a vector's lanes, and four such sums at once. Both add in the same order, so they give the same bits.
inline float sum(Floats v) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }
inline Floats pair_sums(Floats a, Floats b) {
  return SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}
inline Quad sums(Floats a, Floats b, Floats c, Floats d) {
  const Floats halves = pair_sums(pair_sums(a, b), pair_sums(c, d));
  return load<Quad>(&halves) + load<Quad>((const float*)&halves + 4);
}
inline float maximum(Floats v) {
  float most = v[0];
  for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
  return most;
}

// e^x to 2 units in the last place; 0 below -86, where a float's exponent runs out, and e^88 above 88.
// x = n ln 2 + r with |r| <= ln(2)/2: the polynomial gives e^r, and n goes into the exponent's bits.
inline Floats exponential(Floats x) {
  const Floats bounded = x < 88.0f ? x : broadcast(88.0f);
  const Floats shifted = multiply_add(bounded, broadcast(1.44269504f), broadcast(12582912.0f));
  const Floats n = shifted - 12582912.0f;  // 1.5 * 2^23, with which a sum's last bits are those of n
  Floats r = multiply_add(n, broadcast(-0.693359375f), bounded);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  Floats p = multiply_add(r, broadcast(1.3888889e-3f), broadcast(8.3333333e-3f));
  p = multiply_add(p, r, broadcast(4.1666667e-2f));
  p = multiply_add(p, r, broadcast(1.6666667e-1f));
  p = multiply_add(p, r, broadcast(0.5f));
  p = multiply_add(p, r, broadcast(1.0f));
  p = multiply_add(p, r, broadcast(1.0f));
  const Words raised = (Words)p + ((Words)shifted << 23);
  return (Floats)(raised & (Words)(x > -86.0f));
}

// For each i: a[2i] b[2i] + a[2i+1] b[2i+1].
inline Ints multiply_pairs(Shorts a, Shorts b) {
#if defined(__AVX2__)
  return (Ints)__builtin_ia32_pmaddwd256(a, b);
#else
  const Ints wide_a = (Ints)a, wide_b = (Ints)b;
  return (wide_a << 16 >> 16) * (wide_b << 16 >> 16) + (wide_a >> 16) * (wide_b >> 16);
#endif
}

// The same for bytes, a without a sign and b with one: 16 sums of 16 bits, which must not overflow.
inline Shorts multiply_bytes(Bytes a, SignedBytes b) {
#if defined(__AVX2__)
  typedef char Chars __attribute__((vector_size(32)));
  return (Shorts)__builtin_ia32_pmaddubsw256((Chars)a, (Chars)b);
#else
  const Shorts even = (Shorts)((Halves)a & 255), odd = (Shorts)((Halves)a >> 8), wide = (Shorts)b;
  return even * (wide << 8 >> 8) + odd * (wide >> 8);
#endif
}

// Four bytes, eight times.
inline SignedBytes repeat_four(const int8_t* from) { return (SignedBytes)(load<int32_t>(from) - Ints{}); }

}  // namespace
