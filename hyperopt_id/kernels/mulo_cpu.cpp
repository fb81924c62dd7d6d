// One step of the learned optimizer on a CPU, for all tensors of a model at once and in place. A plain C interface.
//
// A tensor comes as [A, X, B, Y, C]: its axes in the order of memory, merged, X and Y being the two that the factored
// accumulators average over. For every slice (a, b) it is X lines of L = Y·C adjacent numbers. A *line* statistic is a
// mean over y, one for every (a, x, b, c); a *place* statistic is a mean over x, one for every (a, b, y, c).
//
// Of the 28 features of a number 16 are its own; 6 are its line's and 6 its place's. The time features and the biases
// are the same for all numbers, and so part of the constant that the first layer starts from. Dividing the features by
// their root mean square is done by scaling the rows of the first layer's weights. What a tensor's shape allows:
//
//     LONG    lines are long: what a place adds to the first layer is computed once for many lines, and, where C is 1,
//             what a line adds once for many places, so that the layer has 16 inputs, not 39
//     SHORT   lines are short: blocks of numbers go on from line to line, and each number looks its statistics up
//     VECTOR  fewer than two axes: the statistics are means of the number's own square
//
// A step has five phases: squares (sums of g²), statistics (factored accumulators), moments (the other accumulators,
// and sums of squares of all features), scales, and move (features, network, new parameters). Within a phase tasks are
// independent and taken by whichever thread is free; what they sum up is added in a fixed order afterwards, so that the
// result does not depend on the number of threads.
//
// The phases are in mulo_cpu_phases.h, which is compiled once for every instruction set.

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace {

enum Type : int64_t { FLOAT32, BFLOAT16, FLOAT16 };
enum Kind { LONG, SHORT, VECTOR };
constexpr int OWN = 16, SHARED = 6, FEATURES = 28, TIMES = 11, HIDDEN = 32;
constexpr int INPUTS = OWN + 2 * SHARED, SUMS = OWN + SHARED;
constexpr int64_t PIECE = 16384;      // numbers of a task, about
constexpr int64_t WORTH = 16384;      // numbers of a thread, at least
constexpr int64_t SLABS = 16;         // of a tensor, at most: parts whose lines are summed up by one task
constexpr int64_t SLAB = 8;           // lines of a slab, at least
constexpr int64_t MOST_PLACES = 768;  // of a piece with long lines, a multiple of WIDEST
constexpr int64_t WIDEST = 48;        // the largest BLOCK
constexpr int64_t MOST_PERIOD = 64;   // C of long lines, at most
constexpr int64_t SHORTEST = 32;      // of long lines
constexpr float LARGEST = 1e15f;      // gradients beyond it count as 0, as in the rule

struct Tensor {  // as Python hands it over: 14 integers
  int64_t param, grad, momentum, square, row, column;
  int64_t a, x, b, y, c;
  int64_t row_is_line;  // 1: rows are lines; 0: rows are places
  int64_t param_type, grad_type;

  int64_t length() const { return y * c; }
  int64_t size() const { return a * x * b * y * c; }
  int64_t lines() const { return a * x * b * c; }
  int64_t places() const { return a * b * y * c; }
  Kind kind() const { return !column ? VECTOR : length() < SHORTEST || c > MOST_PERIOD ? SHORT : LONG; }
};

struct Theta {  // [2409]
  float w0[FEATURES + TIMES][HIDDEN], b0[HIDDEN], w1[HIDDEN][HIDDEN], b1[HIDDEN], w2[HIDDEN][2], b2[2];
  float offsets[7];  // of the decays: momentum, square, factored
};

struct Decays {
  float momentum[3], square, factored[3];

  explicit Decays(const float* offsets) {
    constexpr float initial[] = {0.9f, 0.99f, 0.999f};
    auto beta = [](float start, float offset) { return 1.0f - (1.0f - start) * std::exp(10.0f * offset); };
    auto kept = [](float value) { return value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value; };
    for (int k = 0; k < 3; ++k) momentum[k] = beta(initial[k], offsets[k]);
    square = kept(beta(0.999f, offsets[3]));
    for (int k = 0; k < 3; ++k) factored[k] = kept(beta(initial[k], offsets[4 + k]));
  }
};

struct Statistics {              // of the lines or of the places of a tensor, [3][count] each
  float *mean, *root, *factor;   // `root` are features, `factor` is of the features 10-12 and 25-27
  int64_t count;
};

struct Work {  // of one tensor
  Kind kind;
  Statistics line, place;
  float* partial;  // [slabs][places]: sums of squares over the lines of a slab
  int64_t slabs, lines_per_piece, places_per_piece, pieces;
  double* sums;           // [pieces][SUMS], of squares: own features, and a vector's statistics
  float scale[FEATURES];  // by index of feature
  float rate, decay;      // step multiplier · learning rate; 1 - learning rate · weight decay
};

struct Step {
  const Tensor* tensors;
  Work* work;
  const Theta* theta;
  Decays decays;
  float constant[HIDDEN];  // of the first layer: biases and time features
};

// Steps, of the features tanh(t / tau - 1).
constexpr float TAU[TIMES] = {1.0f, 3.0f, 10.0f, 30.0f, 100.0f, 300.0f, 1e3f, 3e3f, 1e4f, 3e4f, 1e5f};
// Index of the feature that each input of the first layer is.
constexpr int OWN_FEATURES[OWN] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 25, 26, 27};
constexpr int ROW_FEATURES[SHARED] = {13, 14, 15, 19, 20, 21};
constexpr int COLUMN_FEATURES[SHARED] = {16, 17, 18, 22, 23, 24};

int64_t parts(int64_t all, int64_t most) { return (all + most - 1) / most; }
int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
float larger(float x, float y) { return x > y ? x : y; }
float inverse_root(float x) { return 1.0f / std::sqrt(x); }
template <class Number>
Number* numbers(int64_t address) { return reinterpret_cast<Number*>(address); }

// A task of the phases moments and move. LONG: of slice (a, b) the lines [x, x + lines), and of each the places
// [place, place + places). Otherwise: `places` numbers from `place` on, counted in memory.
struct Piece {
  int64_t a, b, x, lines, place, places;
};

Piece piece_of(const Tensor& t, const Work& w, int64_t index) {
  auto part = [](int64_t first, int64_t most, int64_t all) { return least(most, all - first); };
  if (w.kind != LONG) return {0, 0, 0, 1, index * PIECE, part(index * PIECE, PIECE, t.size())};
  const int64_t across = parts(t.length(), w.places_per_piece), down = parts(t.x, w.lines_per_piece);
  const int64_t place = index % across * w.places_per_piece, x = index / across % down * w.lines_per_piece;
  const int64_t slice = index / across / down;
  return {slice / t.b, slice % t.b, x, part(x, w.lines_per_piece, t.x),
          place, part(place, w.places_per_piece, t.length())};
}

void plan(const Tensor& t, Work& w) {
  w.kind = t.kind();
  w.slabs = w.kind == VECTOR ? 0 : least(SLABS, least(parts(t.x, SLAB), parts(t.size(), PIECE)));
  w.pieces = parts(t.size(), PIECE);
  if (w.kind != LONG) return;
  const int64_t length = t.length(), even = parts(length, parts(length, MOST_PLACES));
  w.places_per_piece = least(length, parts(even, WIDEST) * WIDEST);
  w.lines_per_piece = PIECE / w.places_per_piece;
  w.pieces = t.a * t.b * parts(t.x, w.lines_per_piece) * parts(length, w.places_per_piece);
}

// Phase 4: root mean squares of what the pieces have summed up.
void scales(const Step& step, int64_t index) {
  Work& w = step.work[index];
  auto scale = [&](int n) {
    double sum = 0.0;
    for (int64_t piece = 0; piece < w.pieces; ++piece) sum += w.sums[piece * SUMS + n];
    return inverse_root(float(sum / double(step.tensors[index].size())) + 1e-5f);
  };
  for (int n = 0; n < OWN; ++n) w.scale[OWN_FEATURES[n]] = scale(n);
  for (int n = 0; n < SHARED && w.kind == VECTOR; ++n)
    w.scale[ROW_FEATURES[n]] = w.scale[COLUMN_FEATURES[n]] = scale(OWN + n);
}

struct Kernels {  // the phases, for one instruction set
  void (*squares)(const Step&, int64_t tensor, int64_t slab);
  void (*statistics)(const Step&, int64_t tensor);
  void (*moments)(const Step&, int64_t tensor, int64_t piece);
  void (*move)(const Step&, int64_t tensor, int64_t piece);
};

// Tasks of one phase: those of tensor i are numbered ends[i - 1] to ends[i] - 1. A thread may come at any time.
struct Phase {
  std::vector<int64_t> ends;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable complete;

  void add(int64_t tasks) { ends.push_back(tasks + (ends.empty() ? 0 : ends.back())); }

  // Takes tasks as long as there are any, and returns when all of them are done.
  template <class Task>
  void work(Task task) {
    const int64_t all = ends.back();
    size_t tensor = 0;
    for (int64_t n = next++; n < all; n = next++) {
      while (n >= ends[tensor]) ++tensor;  // a thread meets its tasks in order
      task(int64_t(tensor), n - (tensor ? ends[tensor - 1] : 0));
      if (++done < all) continue;
      std::lock_guard<std::mutex> lock(mutex);
      complete.notify_all();
    }
    std::unique_lock<std::mutex> lock(mutex);
    complete.wait(lock, [&] { return done == all; });
  }
};

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__)
#define LANES 16
#define ISA avx512
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#include "mulo_cpu_phases.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#include "mulo_cpu_phases.h"
#pragma GCC pop_options
#endif
#undef LANES
#undef ISA
#define LANES 8
#define ISA avx2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "mulo_cpu_phases.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "mulo_cpu_phases.h"
#pragma GCC pop_options
#endif
#undef LANES
#undef ISA
#endif
#define LANES 4
#define ISA portable
#include "mulo_cpu_phases.h"

namespace {

// `lanes` 0 takes the widest vectors that the processor has; 16, 8 or 4 at most these.
Kernels choose([[maybe_unused]] int64_t lanes) {
#if defined(__x86_64__) && defined(__GNUC__)
  const bool vl = __builtin_cpu_supports("avx512vl");
  const bool avx512 = vl && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
  if ((lanes == 0 || lanes == 16) && avx512) return avx512::KERNELS;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if ((lanes == 0 || lanes >= 8) && avx2) return avx2::KERNELS;
#endif
  return portable::KERNELS;
}

void add_time_features(Step& step, float steps) {
  std::memcpy(step.constant, step.theta->b0, sizeof step.constant);
  for (int n = 0; n < TIMES; ++n) {
    const float time = std::tanh(steps / TAU[n] - 1.0f);
    for (int j = 0; j < HIDDEN; ++j) step.constant[j] += time * step.theta->w0[FEATURES + n][j];
  }
}

void run(const Step& step, std::vector<Work>& work, const Kernels& kernels, int64_t threads) {
  Phase slabs, whole, pieces, summed, moved;
  for (const Work& w : work) {
    slabs.add(w.slabs);
    whole.add(1);
    pieces.add(w.pieces);
    summed.add(1);
    moved.add(w.pieces);
  }
  auto phases = [&] {
    slabs.work([&](int64_t tensor, int64_t slab) { kernels.squares(step, tensor, slab); });
    whole.work([&](int64_t tensor, int64_t) { kernels.statistics(step, tensor); });
    pieces.work([&](int64_t tensor, int64_t piece) { kernels.moments(step, tensor, piece); });
    summed.work([&](int64_t tensor, int64_t) { scales(step, tensor); });
    moved.work([&](int64_t tensor, int64_t piece) { kernels.move(step, tensor, piece); });
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    for (int64_t n = 1; n < threads; ++n) others.emplace_back(phases);
  } catch (const std::exception&) {  // no more threads can be had: those that there are do it
  }
  phases();
  for (std::thread& other : others) other.join();
}

}  // namespace

// One step, the one after `steps` of them, of `count` > 0 tensors. `rates` has the learning rate and the weight decay
// of each, [count][2]; `theta` is [2409]. Returns 0, or 1 where memory is missing; nothing has been changed then.
extern "C" int hyperopt_id_mulo_step(int64_t count, const int64_t* table, const float* rates, const float* theta,
                                     float steps, float step_multiplier, int64_t threads, int64_t lanes) try {
  const Tensor* tensors = reinterpret_cast<const Tensor*>(table);
  std::vector<Work> work(count);
  int64_t floats = 0, sums = 0, size = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& t = tensors[i];
    Work& w = work[i];
    plan(t, w);
    size += t.size();
    sums += w.pieces * SUMS;
    if (w.kind != VECTOR) floats += 6 * (t.lines() + t.places()) + w.slabs * t.places();
  }
  std::vector<float> space(floats);
  std::vector<double> space_of_sums(sums);
  float* next = space.data();
  double* next_sum = space_of_sums.data();
  auto take = [&next](int64_t numbers) { return (next += numbers) - numbers; };
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& t = tensors[i];
    Work& w = work[i];
    w.rate = step_multiplier * rates[2 * i];
    w.decay = 1.0f - rates[2 * i] * rates[2 * i + 1];
    w.sums = next_sum;
    next_sum += w.pieces * SUMS;
    if (w.kind == VECTOR) continue;
    float *row = numbers<float>(t.row), *column = numbers<float>(t.column);
    w.line = {t.row_is_line ? row : column, take(3 * t.lines()), take(3 * t.lines()), t.lines()};
    w.place = {t.row_is_line ? column : row, take(3 * t.places()), take(3 * t.places()), t.places()};
    w.partial = take(w.slabs * t.places());
  }
  const Theta& whole = *reinterpret_cast<const Theta*>(theta);
  Step step{tensors, work.data(), &whole, Decays(whole.offsets), {}};
  add_time_features(step, steps);
  run(step, work, choose(lanes), least(threads, 1 + size / WORTH));
  return 0;
} catch (const std::exception&) {
  return 1;
}
