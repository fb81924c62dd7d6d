// One step of the learned optimizer on a GPU, for all tensors of a model at once and in place, in seven launches
// or fewer. A plain C interface. Its words (line, place, packed, own and shared features) are those of mulo_cpu.cpp.
//
//   squares    sums of g² over the lines and over the places of tiles
//   means      these added up, and the factored accumulators moved on
//   totals     means of all rows, by which rows are divided; sums of squares of the means
//   moments    momenta and mean square moved on; sums of squares of a number's own 16 features
//   scales     of all 28 features, by tensor
//   move       features, network, new parameters: once for large tensors, once for small ones (mulo_cuda_network.h)
//
// A launch has tasks of all tensors, numbered through. A task belongs to a warp or a block, which finds its tensor by
// bisection. Tasks and the order of every sum depend on the shapes alone, so that equal inputs have equal results.

#include <cstdint>

#ifndef EMULATED_GPU
#include "mulo_cuda_device.h"
#endif
#include "mulo_cuda_tensors.h"
#include "mulo_cuda_statistics.h"
#include "mulo_cuda_moments.h"
#include "mulo_cuda_network.h"

namespace {

constexpr int MESSAGE = 500;  // integers: a launch can carry 4 kB

struct Message {
  int64_t* to;
  int count;
  int64_t integers[MESSAGE];
};

__global__ void __launch_bounds__(WIDE) write(const Message message) {
  if (int(threadIdx.x) < message.count) message.to[threadIdx.x] = message.integers[threadIdx.x];
}

void tasks_of(const Tensor& t, bool split, int64_t* tasks) {
  const int64_t segments = t.packed() ? parts(t.lines(), WARP) * t.line_partials() : 0;
  tasks[SQUARES] = t.vector ? 0 : t.tiles(TILE) + segments;
  tasks[MEANS] = t.vector ? parts(t.places(), WIDE) : t.means();
  tasks[TOTALS] = t.sums_of_groups() + t.sums_of_statistics();
  tasks[MOMENTS] = t.moments();
  tasks[MOVE] = split ? 0 : t.moves();
  tasks[MOVE_SPLIT] = split ? t.moves() : 0;
}

}  // namespace

// From the shapes of `count` tensors, 9 integers each, the table that a step needs on the GPU, unless `table` is null.
// Tensors of fewer than `split_below` numbers have split operands in the network. sizes: integers of the table, floats
// of the workspace, then the number of tasks of each phase.
extern "C" void hyperopt_id_mulo_cuda_plan(int64_t count, const int64_t* shapes, int64_t split_below, int64_t* table,
                                           int64_t* sizes) {
  constexpr int64_t WORDS = sizeof(Tensor) / sizeof(int64_t);
  int64_t *tasks = sizes + 2, floats = 0;
  auto take = [&floats](int64_t size) {
    floats += parts(size, 4) * 4;  // scales are read 16 bytes at a time
    return floats - parts(size, 4) * 4;
  };
  for (int phase = 0; phase < PHASES; ++phase) tasks[phase] = 0;
  for (int64_t i = 0; i < count; ++i) {
    Tensor t;
    static_cast<Shape&>(t) = reinterpret_cast<const Shape*>(shapes)[i];
    t.slab = parts(t.x, MOST_SLABS) > LINES ? parts(t.x, MOST_SLABS) : LINES;
    int64_t own[PHASES];
    tasks_of(t, t.size() < split_below, own);
    t.scales = take(SLOTS);
    t.sums = take(t.moments() * OWN);
    t.statistics = take(t.sums_of_statistics() * OWN);
    t.line_partial = take(t.lines() * t.line_partials());
    t.place_partial = take(t.vector ? 0 : t.places() * t.slabs());
    t.inverses = take(t.vector ? 0 : 3 * t.groups());
    for (int phase = 0; phase < PHASES; ++phase) {
      tasks[phase] += own[phase];
      if (table) table[phase * count + i] = tasks[phase];
    }
    if (table) reinterpret_cast<Tensor*>(table + PHASES * count)[i] = t;
  }
  sizes[0] = count * (PHASES + WORDS);
  sizes[1] = floats;
}

// What the functions below return, in words: a CUDA error, or 0.
extern "C" const char* hyperopt_id_mulo_cuda_error(int error) { return description(error); }

// Loads the kernels onto a GPU.
extern "C" int hyperopt_id_mulo_cuda_load(int64_t device) {
  int unused, failed = use(int(device), &unused);
  for (auto kernel : {squares, means, totals, moments, scales, move, move_split})
    if (!failed) failed = preload(kernel);
  return failed ? failed : preload(write);
}

// Writes integers into a GPU's memory, by launches that carry them: a graph that captures these keeps what they carry.
extern "C" int hyperopt_id_mulo_cuda_write(int64_t device, int64_t* to, const int64_t* from, int64_t count,
                                           void* stream) {
  int unused, failed = use(int(device), &unused);
  for (int64_t n = 0; n < count && !failed; n += MESSAGE) {
    Message message = {to + n, int(least(MESSAGE, count - n)), {}};
    for (int i = 0; i < message.count; ++i) message.integers[i] = from[n + i];
    failed = launch(write, 1, WIDE, stream, message);
  }
  return failed;
}

// One step, the one after `steps` of them. All pointers but `sizes` are to the GPU's memory: the table; of each tensor
// param, grad, momentum, square, row, column and two floats, learning rate and weight decay; θ [2409]; the number of
// steps; the workspace.
extern "C" int hyperopt_id_mulo_cuda_step(int64_t device, int64_t count, const int64_t* table, const void* pointers,
                                          const float* theta, const float* steps, float* work, const int64_t* sizes,
                                          float step_multiplier, void* stream) {
  const Step step{count,
                  table,
                  reinterpret_cast<const Tensor*>(table + PHASES * count),
                  static_cast<const Pointers*>(pointers),
                  reinterpret_cast<const Theta*>(theta),
                  steps,
                  work,
                  step_multiplier};
  int all = 1, failed = use(int(device), &all);
  auto run = [&](void (*kernel)(Step), int64_t blocks, int64_t most, int threads) {
    if (blocks && !failed) failed = launch(kernel, least(blocks, most), threads, stream, step);
  };
  const int64_t* tasks = sizes + 2;
  run(squares, tasks[SQUARES], 3 * all, BLOCK);
  run(means, tasks[MEANS], 2 * all, WIDE);
  run(totals, tasks[TOTALS], 2 * all, WIDE);
  run(moments, tasks[MOMENTS], 2 * all, BLOCK);
  run(scales, count, count, WIDE);
  run(move, tasks[MOVE], Float16::RESIDENT * all, MOVE_BLOCK);
  run(move_split, tasks[MOVE_SPLIT], SplitFloat16::RESIDENT * all, MOVE_BLOCK);
  return failed;
}
