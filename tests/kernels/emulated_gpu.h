// What a CUDA source needs to be compiled as C++ and run on a CPU, lane by lane: threads of a block are fibers of one
// host thread, which change places where lanes wait for each other, and a matrix product is computed from the lanes'
// registers as the instruction set describes its fragments. Blocks run one after the other; shared memory starts as NaN.
//
// A fiber runs until it waits, so that lanes are as far apart as they can be. The last one goes first if asked for, or
// they take turns at random while other warps sleep: a result that depends on it shows that a barrier is missing.

#pragma once
#define EMULATED_GPU

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emulated_shared")))

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __expf(float x) { return std::exp(x); }

extern "C" {
inline __attribute__((used)) int emulated_order = 0;    // of lanes: 0 first to last, 1 last to first, 2 random
inline __attribute__((used)) int emulated_failure = 0;  // what the GPU answers
inline __attribute__((used)) int emulated_launches = 0;
extern char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((visibility("hidden")));
}

namespace emulated {

struct Barrier {
  int size, waiting = 0;
  long round = 0;
};

struct Deposit { uint32_t words[10]; };

struct Fiber {
  ucontext_t context;  // where it starts
  jmp_buf place;       // and goes on; this makes no system call
  bool started = false;
  std::vector<char> stack = std::vector<char>(1 << 18);
  Barrier* at = nullptr;  // which it waits at
  long round = 0;         // that it waits for the end of
  bool done = false;
};

inline std::vector<Fiber> fibers;
inline std::vector<Barrier> warps;
inline std::vector<std::vector<Deposit>> deposits;  // of a warp, twice 32: a round's, while the next one's come in
inline Barrier block;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline unsigned thread, blocks, this_block, threads;

__attribute__((noinline)) inline void resume(Fiber& fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

__attribute__((noinline)) inline void pause(Fiber& fiber) {
  if (!_setjmp(fiber.place)) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier) {
  Fiber& self = fibers[thread];
  if (++barrier.waiting == barrier.size) {
    barrier.waiting = 0;
    ++barrier.round;
    return;
  }
  self.at = &barrier;
  self.round = barrier.round;
  pause(self);
}

inline void enter() {
  body();
  fibers[thread].done = true;
  pause(fibers[thread]);
}

// The threads whose turn it is, in order. At random, a warp sleeps until no other one can go on, now and then earlier.
inline void choose(std::vector<unsigned>& order, bool stuck) {
  static std::minstd_rand random;
  static unsigned awake = 0;  // by warp
  order.clear();
  if (stuck || random() % 32 == 0) awake = unsigned(random() >> 8);
  if (emulated_order < 2) awake = ~0u;
  for (unsigned n = 0; n < threads; ++n)
    if (awake >> n / 32 & 1) order.push_back(emulated_order == 1 ? threads - 1 - n : n);
  if (emulated_order > 1) std::shuffle(order.begin(), order.end(), random);
}

inline void run_block() {
  std::memset(__start_emulated_shared, 0xff, size_t(__stop_emulated_shared - __start_emulated_shared));
  std::vector<unsigned> order;
  fibers.resize(threads);
  warps.assign(threads / 32, Barrier{32});
  deposits.assign(threads / 32, std::vector<Deposit>(64));
  block = Barrier{int(threads)};
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    fiber.at = nullptr;
    fiber.done = fiber.started = false;
    makecontext(&fiber.context, enter, 0);
  }
  for (unsigned left = threads, idle = 0; left > 0;) {
    bool moved = false;
    choose(order, idle > 0);
    for (const unsigned next : order) {
      thread = next;
      Fiber& fiber = fibers[thread];
      if (fiber.done || (fiber.at && fiber.at->round == fiber.round)) continue;
      fiber.at = nullptr;
      resume(fiber);
      left -= fiber.done;
      moved = true;
    }
    idle = moved ? 0 : idle + 1;
    if (idle > 1000) std::fprintf(stderr, "threads wait for ones that do not come\n"), std::abort();
  }
}

// What the lanes of this thread's warp hand over; valid until the warp's next exchange but one.
inline const Deposit* exchange(const Deposit& own) {
  const unsigned warp = thread / 32, lane = thread % 32;
  Deposit* all = deposits[warp].data() + warps[warp].round % 2 * 32;
  all[lane] = own;
  wait(warps[warp]);
  return all;
}

struct ThreadIndex {
  struct {
    operator unsigned() const { return thread; }
  } x;
};
struct BlockIndex {
  struct {
    operator unsigned() const { return this_block; }
  } x;
};
struct BlockCount {
  struct {
    operator unsigned() const { return blocks; }
  } x;
};

}  // namespace emulated

inline emulated::ThreadIndex threadIdx;
inline emulated::BlockIndex blockIdx;
inline emulated::BlockCount gridDim;

inline void __syncthreads() { emulated::wait(emulated::block); }
inline void __syncwarp() { emulated::exchange({}); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  return __uint_as_float(emulated::exchange({{__float_as_uint(value)}})[(emulated::thread % 32) ^ mask].words[0]);
}

template <class Type>
Type* global(Type* pointer) {
  return pointer;
}

inline void write4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }

inline float inverse_root(float x) { return 1.0f / std::sqrt(x); }

inline float from_float16(uint16_t bits) {
  static const std::vector<float> all = [] {  // a processor may have no instruction for it
    std::vector<float> values(1 << 16);
    for (uint32_t n = 0; n < values.size(); ++n) {
      const uint16_t own = uint16_t(n);
      _Float16 value;
      std::memcpy(&value, &own, 2);
      values[n] = value;
    }
    return values;
  }();
  return all[bits];
}

inline uint32_t to_float16(float first, float second) {
  const _Float16 halves[2] = {_Float16(first), _Float16(second)};
  uint32_t bits;
  std::memcpy(&bits, halves, 4);
  return bits;
}

inline float rectified(float x) { return std::isnan(x) ? x : std::clamp(x, 0.0f, 65504.0f); }

inline uint32_t to_rectified_float16(float first, float second) {
  return to_float16(rectified(first), rectified(second));
}

inline uint32_t to_bfloat16(float first, float second) {
  auto rounded = [](float value) {
    const uint32_t bits = __float_as_uint(value);
    return std::isnan(value) ? 0x7fffu : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return rounded(first) | rounded(second) << 16;
}

// The fragments of m16n8k16, lane = 4 group + own; a register has two values, the one of lower k in its lower half:
// a0 is row `group`, columns 2 own and 2 own + 1; a1 row group + 8; a2 and a3 the same with columns 2 own + 8 and + 9;
// b0 is rows 2 own and 2 own + 1, column `group`; b1 rows 2 own + 8 and + 9; sums 0 and 1 are row `group`, columns
// 2 own and 2 own + 1; sums 2 and 3 row group + 8.
//
// The sum is that of tensor cores, as they were measured on an A100: eight products at a time are added exactly, but for
// what is below 2^-24 of the largest summand, which is cut off, as is what a float does not hold.
inline float accumulated(float sum, const float (&products)[8]) {
  int exponent = int(__float_as_uint(sum) >> 23 & 0xff);
  for (const float x : products) exponent = std::max(exponent, int(__float_as_uint(x) >> 23 & 0xff));
  if (exponent == 0xff) return std::accumulate(products, products + 8, sum);
  const double unit = std::ldexp(1.0, exponent - 127 - 24), units = 1.0 / unit;
  int64_t total = int64_t(sum * units);
  for (const float x : products) total += int64_t(x * units);
  const double exact = double(total) * unit;
  const float rounded = float(exact);
  return std::fabs(double(rounded)) > std::fabs(exact) ? std::nextafter(rounded, 0.0f) : rounded;
}

inline void multiply_float16(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                             uint32_t b1) {
  const emulated::Deposit* all = emulated::exchange({{a0, a1, a2, a3, b0, b1}});
  const int group = emulated::thread % 32 / 4, own = emulated::thread % 4;
  auto half = [](uint32_t bits, int k) { return from_float16(uint16_t(bits >> k % 2 * 16)); };
  auto a = [&](int row, int k) { return half(all[row % 8 * 4 + k % 8 / 2].words[k / 8 * 2 + row / 8], k); };
  auto b = [&](int k, int column) { return half(all[column * 4 + k % 8 / 2].words[4 + k / 8], k); };
  for (int n = 0; n < 4; ++n)
    for (int k = 0; k < 16; k += 8) {
      float products[8];
      for (int i = 0; i < 8; ++i) products[i] = a(group + n / 2 * 8, k + i) * b(k + i, 2 * own + n % 2);
      sum[n] = accumulated(sum[n], products);
    }
}

inline int use(int, int* multiprocessors) {
  *multiprocessors = 1;
  return emulated_failure;
}

inline const char* description(int) { return "the emulated error"; }

template <class Argument>
int preload(void (*)(Argument)) {
  return 0;
}

template <class Argument>
int launch(void (*kernel)(Argument), int64_t blocks, int threads, void*, const Argument& argument) {
  ++emulated_launches;
  emulated::blocks = unsigned(blocks);
  emulated::threads = unsigned(threads);
  emulated::body = [&] { kernel(argument); };
  for (emulated::this_block = 0; emulated::this_block < blocks; ++emulated::this_block) emulated::run_block();
  return 0;
}
