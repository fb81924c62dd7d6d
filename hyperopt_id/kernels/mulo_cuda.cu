// One step of the learned optimizer on a GPU, for all tensors of a model at once and in place, in seven launches
// or fewer. A plain C interface. Its words (line, place, packed, own and shared features) are those of mulo_cpu.cpp.
//
//   squares    sums of g² over the lines and over the places of tiles
//   means      these added up, and the factored accumulators moved on
//   inverses   of the means of rows, by which rows are divided
//   moments    momenta and mean square moved on; sums of squares of a number's own 16 features
//   scales     of all 28 features
//   move       features, network, new parameters: once for large tensors, once for small ones (mulo_cuda_network.h)
//
// A launch has tasks of all tensors, numbered through. A task belongs to a warp or a block, which finds its tensor by
// bisection. Tasks and the order of every sum depend on the shapes alone, so that equal inputs have equal results.

#include <cstdint>

#ifndef EMULATED_GPU  // the tests run this file on a CPU: a header of theirs then stands for this section
namespace {

// A pointer that was read from memory; the compiler is told of what memory it is.
template <class Type>
__device__ Type* global(Type* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

// 1 / √x, to 2^-22, of x that is not denormal.
__device__ float inverse_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ float from_float16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Two values rounded; the first one is in the lower half.
__device__ uint32_t to_float16(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

// The same of max(0, ·), but not more than the largest one.
__device__ uint32_t to_rectified_float16(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  asm("min.f16x2 %0, %0, %1;" : "+r"(bits) : "r"(0x7bff7bff));
  return bits;
}

__device__ uint32_t to_bfloat16(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
}

// Four numbers at once; of an assignment the compiler makes four stores.
__device__ void write4(float* to, float4 x) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}

// sum [16, 8] += a [16, 16] b [16, 8] of float16.
__device__ void multiply_float16(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <class Argument>
int launch(void (*kernel)(Argument), int64_t blocks, int threads, void* stream, const Argument& argument) {
  kernel<<<unsigned(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(argument);
  return cudaGetLastError();
}

// Makes a device the current one, as it is for torch already, and says how many multiprocessors it has.
int use(int device, int* multiprocessors) {
  const int failed = cudaSetDevice(device);
  return failed ? failed : cudaDeviceGetAttribute(multiprocessors, cudaDevAttrMultiProcessorCount, device);
}

}  // namespace
#endif

namespace {

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { SQUARES, MEANS, INVERSES, MOMENTS, MOVE, MOVE_SPLIT, PHASES };  // `scales` has a block for every tensor
constexpr int OWN = 16, SHARED = 6, SLOTS = 32, FEATURES = 28, TIMES = 11, HIDDEN = 32;
constexpr int WARP = 32, WARPS = 8, BLOCK = WARPS * WARP;  // of the launches whose tasks belong to warps
constexpr int MOVE_WARPS = 4, MOVE_BLOCK = MOVE_WARPS * WARP;
constexpr int WIDE_WARPS = 16, WIDE = WIDE_WARPS * WARP;   // of the others
constexpr int64_t SHORT = 32;       // a line shorter than this is not worth a computation of its own
constexpr int64_t TILE = 4 * WARP;  // places of a tile: four for a lane
constexpr int64_t LINES = 32;       // of a slab, at least
constexpr int64_t MOST_SLABS = 1024;
constexpr int64_t SEGMENT = 256;   // terms of a sum over y, where lines are packed
constexpr int64_t CHUNK = 4096;    // numbers of a task of moments, where lines are packed
constexpr int64_t STEPPED = 1024;  // numbers of a task of move, likewise
constexpr float LARGEST = 65504.0f;  // of float16
__device__ constexpr float TAU[TIMES] = {1.0f, 3.0f, 10.0f, 30.0f, 100.0f, 300.0f, 1e3f, 3e3f, 1e4f, 3e4f, 1e5f};

// The feature that is slot i of lane q, at 4q + i: of the momenta m, m/√v, gF, mF; of lane 3 w, 1/√v, g, v.
__device__ constexpr int OWN_FEATURES[OWN] = {2, 6, 10, 25, 3, 7, 11, 26, 4, 8, 12, 27, 1, 9, 0, 5};
// The features that are statistics of rows and of columns: three means, three roots.
__device__ constexpr int SHARED_FEATURES[2][SHARED] = {{13, 14, 15, 19, 20, 21}, {16, 17, 18, 22, 23, 24}};

__host__ __device__ constexpr int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

struct Shape {  // as Python hands it over: 9 integers
  int64_t a, x, b, y, c;
  int64_t rows_are_lines;  // 1: rows are lines; 0: rows are places
  int64_t vector;
  int64_t param_type, grad_type;
};

struct Tensor : Shape {  // with what the host works out from it
  int64_t slab;  // lines of a slab
  int64_t line_partial, place_partial, inverses, sums, scales;  // where in the workspace

  __host__ __device__ int64_t length() const { return y * c; }
  __host__ __device__ int64_t size() const { return a * x * b * y * c; }
  __host__ __device__ int64_t lines() const { return vector ? 0 : a * x * b * c; }
  __host__ __device__ int64_t places() const { return a * b * y * c; }
  __host__ __device__ int64_t groups() const { return a * b * c; }  // of rows, which are divided by their common mean
  __host__ __device__ int64_t members() const { return rows_are_lines ? x : y; }  // of a group
  __host__ __device__ bool packed() const { return vector || c > 1 || length() < SHORT; }
  __host__ __device__ int64_t slabs() const { return parts(x, slab); }
  __host__ __device__ int64_t line_partials() const { return packed() ? parts(y, SEGMENT) : parts(length(), TILE); }
};

struct Pointers {  // as Python hands them over
  void* param;
  const void* grad;
  float *momentum, *square, *row, *column;
};

struct Theta {  // [2409]
  float w0[FEATURES + TIMES][HIDDEN], b0[HIDDEN], w1[HIDDEN][HIDDEN], b1[HIDDEN], w2[HIDDEN][2], b2[2];
  float momentum[3], square, factored[3];  // offsets of the decays
};

struct Step {  // what a launch is given
  int64_t count;
  const int64_t* ends;  // [PHASES][count]: where the tasks of a tensor end
  const Tensor* tensors;
  const Pointers* pointers;
  const float* rates;  // [count][2]: learning rates, weight decays
  const Theta* theta;
  const float* steps;
  float* work;
  float multiplier;
};

// Whether a pointer to numbers of a type can be read four at a time.
__device__ bool aligned(const void* pointer, int64_t type) {
  return reinterpret_cast<uintptr_t>(pointer) % (type == FLOAT32 ? 16 : 8) == 0;
}

struct Task {
  int64_t tensor, index;  // of the task among those of its tensor
};

// A tensor of a task, in memory: what a loop needs of it is copied, or would be read again after every store.
struct Leaf {
  const Tensor& t;
  const Pointers& at;
  const float* work;

  __device__ Leaf(const Step& step, int64_t i) : t(step.tensors[i]), at(step.pointers[i]), work(step.work) {}
  // Means of g², [3] of all lines, and of all places.
  __device__ float* line() const { return global(t.rows_are_lines ? at.row : at.column); }
  __device__ float* place() const { return global(t.rows_are_lines ? at.column : at.row); }
  // Of the mean of rows, by decay and group.
  __device__ float inverse(int k, int64_t group) const { return work[t.inverses + k * t.groups() + group]; }
  // Whether four numbers can be read at once, from the fourth ones of a line (of all, if packed) on.
  __device__ bool whole() const {
    return (t.packed() ? t.size() : t.length()) % 4 == 0 && aligned(at.param, t.param_type) &&
           aligned(at.grad, t.grad_type) && aligned(at.momentum, FLOAT32) && aligned(at.square, FLOAT32);
  }
};

__device__ Task find(const Step& step, int phase, int64_t task) {
  const int64_t* ends = step.ends + phase * step.count;
  int64_t low = 0, high = step.count - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (task < ends[middle]) high = middle;
    else low = middle + 1;
  }
  return {low, low ? task - ends[low - 1] : task};
}

// Calls visit(task) for the tasks of this warp, one of `warps` of its block; neighbors go to different multiprocessors.
template <class Visit>
__device__ void each_task(const Step& step, int phase, int warps, Visit visit) {
  for (uint32_t n = blockIdx.x + gridDim.x * (threadIdx.x / WARP); n < step.ends[(phase + 1) * step.count - 1];
       n += gridDim.x * warps)
    visit(find(step, phase, n));
}

__device__ float decayed(float initial, float offset) { return 1.0f - (1.0f - initial) * expf(10.0f * offset); }

__device__ float kept(float beta) { return fminf(fmaxf(beta, 0.0f), 1.0f); }

__device__ float initial(int k) { return k == 0 ? 0.9f : k == 1 ? 0.99f : 0.999f; }

// The old mean moved on by the rate 1 - beta.
__device__ float mixed(float rate, float old, float fresh) { return old + rate * (fresh - old); }

// What a statistic brings to a factor; `inverse` is that of the mean of its group if it is a row's, else 1.
__device__ float factor(float mean, float inverse) { return inverse_root(fmaxf(mean * inverse, 1e-9f)); }

__device__ float root(float mean) { return inverse_root(mean + 1e-8f); }

// A gradient that is no use (NaN, infinite, or so large that sums of its square might be) counts as 0, as in the rule.
__device__ float usable(float x) { return fabsf(x) <= 1e15f ? x : 0.0f; }

__device__ float warp_sum(float x) {
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  return x;
}

__device__ float load(const void* pointer, int64_t type, int64_t index) {
  const void* from = global(pointer);
  if (type == FLOAT32) return static_cast<const float*>(from)[index];
  const uint16_t bits = static_cast<const uint16_t*>(from)[index];
  return type == FLOAT16 ? from_float16(bits) : __uint_as_float(uint32_t(bits) << 16);
}

__device__ void store(void* pointer, int64_t type, int64_t index, float value) {
  void* to = global(pointer);
  if (type == FLOAT32) static_cast<float*>(to)[index] = value;
  else if (type == FLOAT16) static_cast<uint16_t*>(to)[index] = uint16_t(to_float16(value, 0.0f));
  else static_cast<uint16_t*>(to)[index] = uint16_t(to_bfloat16(value, 0.0f));
}

// Four adjacent numbers as they are in memory, of float32, or of 16 bits in the first half: while they are on their way
// nothing has to be done with them. What is not there is 0.
struct Raw {
  uint32_t at[4];
};

struct Four {
  float at[4];
};

__device__ Raw read4(const float* pointer) {
  const uint4 bits = *reinterpret_cast<const uint4*>(global(pointer));
  return {{bits.x, bits.y, bits.z, bits.w}};
}

// Of which `valid` are there; `whole` ones can be read at once.
__device__ Raw read4(const void* pointer, int64_t type, int64_t first, int valid, bool whole) {
  const float* from = static_cast<const float*>(global(pointer)) + first;
  const uint16_t* halves = static_cast<const uint16_t*>(global(pointer)) + first;
  Raw raw = {};
  if (!whole || valid < 4) {
    for (int e = 0; e < 4; ++e)
      if (e < valid && type == FLOAT32) raw.at[e] = __float_as_uint(from[e]);
      else if (e < valid) raw.at[e / 2] |= uint32_t(halves[e]) << e % 2 * 16;
  } else if (type == FLOAT32) {
    raw = read4(from);
  } else {
    const uint2 bits = *reinterpret_cast<const uint2*>(halves);
    raw.at[0] = bits.x;
    raw.at[1] = bits.y;
  }
  return raw;
}

__device__ Four numbers_of(const Raw& raw, int64_t type) {
  Four four;
  for (int e = 0; e < 4; ++e) four.at[e] = __uint_as_float(raw.at[e]);
  if (type == FLOAT32) return four;
  for (int e = 0; e < 4; ++e) {
    const uint32_t half = raw.at[e / 2] >> e % 2 * 16 & 0xffff;
    four.at[e] = type == FLOAT16 ? from_float16(uint16_t(half)) : __uint_as_float(half << 16);
  }
  return four;
}

__device__ void store4(float* pointer, const Four& four, int valid, bool whole) {
  float* to = global(pointer);
  if (whole && valid == 4) {
    write4(to, make_float4(four.at[0], four.at[1], four.at[2], four.at[3]));
  } else {
    for (int e = 0; e < 4; ++e)
      if (e < valid) to[e] = four.at[e];
  }
}

__device__ int clamped(int64_t valid) { return valid < 0 ? 0 : valid > 4 ? 4 : int(valid); }

// Of slice a · b + b' the lines [x, x + lines), and of each the places [l, l + places). Lines are in memory as
// [a][x][b][length].
struct Tile {
  int64_t slice, x, l, slab, group, line;  // `line`: of all lines, the one at x; the next one is `stride` further
  int64_t stride;
  int lines, places;
};

__device__ Tile tile_of(const Tensor& t, int64_t b, int64_t length, int64_t width, int64_t index) {
  Tile tile;
  const int64_t across = parts(length, width), down = t.slabs();
  tile.group = index % across;
  tile.slab = index / across % down;
  tile.slice = index / across / down;
  tile.l = tile.group * width;
  tile.x = tile.slab * t.slab;
  tile.line = (tile.slice / b * t.x + tile.x) * b + tile.slice % b;
  tile.stride = b;
  tile.lines = int(tile.x + t.slab < t.x ? t.slab : t.x - tile.x);
  tile.places = int(tile.l + width < length ? width : length - tile.l);
  return tile;
}

// g² summed over the lines of a tile, and, where lines are not packed, over its places.
__device__ void squares_of_tile(const Step& step, const Task& task) {
  const Leaf leaf(step, task.tensor);
  const Tensor& t = leaf.t;
  const Pointers& at = leaf.at;
  const bool packed = t.packed();
  const int64_t length = packed ? t.b * t.length() : t.length();
  const Tile tile = tile_of(t, packed ? 1 : t.b, length, TILE, task.index);
  const int lane = threadIdx.x % WARP, valid = clamped(tile.places - 4 * lane);
  const bool at_once = length % 4 == 0 && aligned(at.grad, t.grad_type);
  constexpr int TOGETHER = 4;  // lines that are on their way at the same time
  const void* grad = at.grad;
  const int type = int(t.grad_type);
  const int64_t stride = tile.stride * length;
  int64_t first = tile.line * length + tile.l + 4 * lane;
  Four sums = {};
  float mine = 0.0f;
  for (int i = 0; i < tile.lines; i += TOGETHER) {
    Raw raw[TOGETHER];
#pragma unroll
    for (int u = 0; u < TOGETHER; ++u, first += stride)
      raw[u] = read4(grad, type, first, i + u < tile.lines ? valid : 0, at_once);
#pragma unroll
    for (int u = 0; u < TOGETHER; ++u) {
      const Four g = numbers_of(raw[u], type);
      float sum = 0.0f;
      for (int e = 0; e < 4; ++e) {
        const float x = usable(g.at[e]), square = x * x;
        sums.at[e] += square;
        sum += square;
      }
      if (packed) continue;
      sum = warp_sum(sum);
      if (lane == (i + u) % WARP) mine = sum;
    }
    const int done = i + TOGETHER < tile.lines ? i + TOGETHER : tile.lines;
    if (packed || (done % WARP && done < tile.lines)) continue;
    const int own = (done - 1) / WARP * WARP + lane;  // a lane has the sum of one line, of the last 32
    if (own < done) step.work[t.line_partial + tile.group * t.lines() + tile.line + own * tile.stride] = mine;
  }
  float* partial = step.work + t.place_partial + tile.slab * t.places() + tile.slice * length + tile.l;
  store4(partial + 4 * lane, sums, valid, false);
}

// g² summed over a segment of y, for 32 of the lines' statistics.
__device__ void squares_of_segment(const Step& step, const Task& task, int64_t index) {
  const Tensor t = step.tensors[task.tensor];
  const Pointers at = step.pointers[task.tensor];
  const int64_t blocks = parts(t.lines(), WARP), segment = index / blocks;
  const int64_t own = index % blocks * WARP + threadIdx.x % WARP;
  if (own >= t.lines()) return;
  const int64_t last = (segment + 1) * SEGMENT < t.y ? (segment + 1) * SEGMENT : t.y;
  const int64_t origin = own / t.c * t.length() + own % t.c;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t y = segment * SEGMENT; y < last; ++y) {
    const float x = usable(load(at.grad, t.grad_type, origin + y * t.c));
    sum += x * x;
  }
  step.work[t.line_partial + segment * t.lines() + own] = sum;
}

__host__ __device__ int64_t tiles(const Tensor& t, int64_t width) {
  const int64_t slabs = t.a * t.slabs();
  return t.packed() ? slabs * parts(t.b * t.length(), width) : slabs * t.b * parts(t.length(), width);
}

__global__ void __launch_bounds__(BLOCK, 3) squares(const Step step) {
  each_task(step, SQUARES, WARPS, [&](const Task& task) {
    const int64_t segments = task.index - tiles(step.tensors[task.tensor], TILE);
    if (segments < 0) squares_of_tile(step, task);
    else squares_of_segment(step, task, segments);
  });
}

// The mean of g² of 32 lines or places, and the accumulators that belong to it.
__device__ void means_of(const Step& step, const Task& task, float (&sums)[WIDE_WARPS][WARP]) {
  const Leaf leaf(step, task.tensor);
  const Tensor& t = leaf.t;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int64_t line_tasks = parts(t.lines(), WARP);
  const bool line = task.index < line_tasks;
  const int64_t all = line ? t.lines() : t.places(), partials = line ? t.line_partials() : t.slabs();
  const int64_t own = (line ? task.index : task.index - line_tasks) * WARP + lane;
  const float* partial = step.work + (line ? t.line_partial : t.place_partial) + own;
  float sum = 0.0f;
  if (own < all)
#pragma unroll 8
    for (int64_t n = warp; n < partials; n += WIDE_WARPS) sum += partial[n * all];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp < 3 && own < all) {
    sum = 0.0f;
    for (int n = 0; n < WIDE_WARPS; ++n) sum += sums[n][lane];
    const float rate = 1.0f - kept(decayed(initial(warp), step.theta->factored[warp]));
    float& mean = (line ? leaf.line() : leaf.place())[warp * all + own];
    mean = mixed(rate, mean, sum / float(line ? t.y : t.x) + 1e-30f);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(WIDE, 2) means(const Step step) {
  __shared__ float sums[WIDE_WARPS][WARP];
  for (int64_t n = blockIdx.x; n < step.ends[(MEANS + 1) * step.count - 1]; n += gridDim.x) {
    const Task task = find(step, MEANS, n);
    const Tensor t = step.tensors[task.tensor];
    const int64_t own = task.index * WIDE + threadIdx.x;
    if (!t.vector) {
      means_of(step, task, sums);
    } else if (own < t.places()) {
      const float g = usable(load(step.pointers[task.tensor].grad, t.grad_type, own));
      for (int k = 0; k < 3; ++k) {
        float& mean = global(step.pointers[task.tensor].row)[k * t.places() + own];
        mean = mixed(1.0f - kept(decayed(initial(k), step.theta->factored[k])), mean, g * g + 1e-30f);
      }
    }
  }
}

// Whether one sum over the members of a group is worth a block; else it belongs to a warp.
__host__ __device__ bool wide(const Tensor& t) { return t.members() > WIDE; }

__global__ void __launch_bounds__(WIDE, 2) inverses(const Step step) {
  __shared__ float sums[WIDE_WARPS];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int64_t n = blockIdx.x; n < step.ends[(INVERSES + 1) * step.count - 1]; n += gridDim.x) {
    const Task task = find(step, INVERSES, n);
    const Tensor t = step.tensors[task.tensor];
    const float* row = global(step.pointers[task.tensor].row);
    const int64_t own = wide(t) ? task.index : task.index * WIDE_WARPS + warp, groups = t.groups();
    const int64_t rows = t.rows_are_lines ? t.lines() : t.places(), slice = own % groups / t.c, c = own % t.c;
    const int64_t first = t.rows_are_lines ? (slice / t.b * t.x * t.b + slice % t.b) * t.c + c : slice * t.length() + c;
    const int64_t stride = t.rows_are_lines ? t.b * t.c : t.c;
    float sum = 0.0f;
    if (own < 3 * groups)
#pragma unroll 8
      for (int64_t m = wide(t) ? threadIdx.x : lane; m < t.members(); m += wide(t) ? WIDE : WARP)
        sum += row[own / groups * rows + first + m * stride];
    sum = warp_sum(sum);
    if (wide(t)) {
      if (lane == 0) sums[warp] = sum;
      __syncthreads();
      sum = 0.0f;
      for (int other = 0; other < WIDE_WARPS; ++other) sum += sums[other];
      __syncthreads();
    }
    if (own < 3 * groups && (wide(t) ? threadIdx.x : lane) == 0)
      step.work[t.inverses + own] = 1.0f / (sum / float(t.members()) + 1e-9f);
  }
}

__device__ int64_t quotient(int64_t a, int64_t b) {
  return (a | b) >> 32 ? a / b : int64_t(uint32_t(a) / uint32_t(b));  // the latter is much faster
}

// Where a number of a packed tensor is: in which line and slice, at which place, and which of the C adjacent ones.
struct Position {
  int64_t line, slice, l, c;

  __device__ Position(const Tensor& t, int64_t number) {
    line = quotient(number, t.length());
    l = number - line * t.length();
    c = l - quotient(l, t.c) * t.c;
    slice_of_line(t);
  }
  __device__ void next(const Tensor& t) {
    if (++c == t.c) c = 0;
    if (++l < t.length()) return;
    l = 0;
    ++line;
    slice_of_line(t);
  }
  __device__ void slice_of_line(const Tensor& t) {
    const int64_t x = quotient(line, t.b), a = quotient(x, t.x);
    slice = a * t.b + line - x * t.b;
  }
};

// What turns a gradient (a mean of it) into features 10-12 (25-27), of a packed tensor that is not a vector.
__device__ float packed_factor(const Leaf& leaf, const Position& at, int k, float of_line, float of_place) {
  const float inverse = leaf.inverse(k, at.slice * leaf.t.c + at.c);
  const bool lines = leaf.t.rows_are_lines;
  return factor(of_line, lines ? inverse : 1.0f) * factor(of_place, lines ? 1.0f : inverse);
}

__device__ float line_mean(const Leaf& leaf, const Position& at, int k) {
  return leaf.line()[k * leaf.t.lines() + at.line * leaf.t.c + at.c];
}

__device__ float place_mean(const Leaf& leaf, const Position& at, int k) {
  return leaf.place()[k * leaf.t.places() + at.slice * leaf.t.length() + at.l];
}

// The same two of a vector.
__device__ float vector_factor(float mean) { return inverse_root(mean + 1e-9f); }

__device__ float vector_momentum_factor(float mean) { return inverse_root(mean + 1e-6f); }

// What a lane keeps that moves accumulators on, four numbers at a time, and adds up the squares of their features.
struct Mover {
  const void *grad, *param;
  float *momentum, *square;
  int64_t size;
  int grad_type, param_type;
  bool whole, simple;  // simple: all is float32, and can be read four at a time
  float rate[4], sums[OWN];  // 1 - beta of the momenta and of the mean square

  struct Numbers {
    Raw g, w, v, m[3];
  };

  __device__ Mover(const Step& step, const Leaf& leaf)
      : grad(leaf.at.grad), param(leaf.at.param), momentum(leaf.at.momentum), square(leaf.at.square),
        size(leaf.t.size()), grad_type(int(leaf.t.grad_type)), param_type(int(leaf.t.param_type)), whole(leaf.whole()),
        simple(whole && grad_type == FLOAT32 && param_type == FLOAT32) {
    for (int k = 0; k < 3; ++k) rate[k] = 1.0f - decayed(initial(k), step.theta->momentum[k]);
    rate[3] = 1.0f - kept(decayed(0.999f, step.theta->square));
    for (int n = 0; n < OWN; ++n) sums[n] = 0.0f;
  }

  __device__ Numbers read(int64_t first, int valid) const {
    Numbers now;
    if (simple && valid == 4) {
      now.g = read4(static_cast<const float*>(grad) + first);
      now.w = read4(static_cast<const float*>(param) + first);
      now.v = read4(square + first);
      for (int k = 0; k < 3; ++k) now.m[k] = read4(momentum + k * size + first);
    } else {
      now.g = read4(grad, grad_type, first, valid, whole);
      now.w = read4(param, param_type, first, valid, whole);
      now.v = read4(square, FLOAT32, first, valid, whole);
      for (int k = 0; k < 3; ++k) now.m[k] = read4(momentum + k * size, FLOAT32, first, valid, whole);
    }
    return now;
  }

  __device__ void move(const Numbers& now, int64_t first, int valid, const float (&factors)[3][4],
                       const float (&momentum_factors)[3][4]) {
    Four g = numbers_of(now.g, grad_type), v = numbers_of(now.v, FLOAT32), m[3];
    const Four w = numbers_of(now.w, param_type);
    for (int k = 0; k < 3; ++k) m[k] = numbers_of(now.m[k], FLOAT32);
    for (int e = 0; e < 4; ++e) {
      g.at[e] = usable(g.at[e]);
      v.at[e] = mixed(rate[3], v.at[e], g.at[e] * g.at[e]);
      for (int k = 0; k < 3; ++k) m[k].at[e] = mixed(rate[k], m[k].at[e], g.at[e]);
    }
    for (int k = 0; k < 3; ++k) store4(momentum + k * size + first, m[k], valid, whole);
    store4(square + first, v, valid, whole);
    for (int e = 0; e < 4; ++e) {
      const float scale = e < valid ? inverse_root(v.at[e] + 1e-6f) : 0.0f;  // all other features of no number are 0
      const float slots[4] = {w.at[e], scale, g.at[e], v.at[e]};
      for (int i = 0; i < 4; ++i) sums[12 + i] += slots[i] * slots[i];
      for (int k = 0; k < 3; ++k) {
        const float x = m[k].at[e], own[4] = {x, x * scale, g.at[e] * factors[k][e], x * momentum_factors[k][e]};
        for (int i = 0; i < 4; ++i) sums[4 * k + i] += own[i] * own[i];
      }
    }
  }
};

__device__ void moments_of_tile(const Leaf& leaf, int64_t index, Mover& mover) {
  const Tensor& t = leaf.t;
  const Tile tile = tile_of(t, t.b, t.length(), TILE, index);
  const int lane = threadIdx.x % WARP, valid = clamped(tile.places - 4 * lane);
  const int64_t place = tile.slice * t.length() + tile.l + 4 * lane;
  const int64_t lines = t.lines(), stride = tile.stride * t.length();
  const float* of_lines = leaf.line() + tile.line;
  float of_place[3][4], inverse[3];
  for (int k = 0; k < 3; ++k) {
    const float normalizer = leaf.inverse(k, tile.slice);
    inverse[k] = t.rows_are_lines ? normalizer : 1.0f;
    const Four mean = numbers_of(read4(leaf.place() + k * t.places(), FLOAT32, place, valid, false), FLOAT32);
    for (int e = 0; e < 4; ++e) of_place[k][e] = factor(mean.at[e], t.rows_are_lines ? 1.0f : normalizer);
  }
  int64_t first = tile.line * t.length() + tile.l + 4 * lane;
  for (int i = 0; i < tile.lines; ++i, first += stride, of_lines += tile.stride) {
    const Mover::Numbers now = mover.read(first, valid);
    float factors[3][4];
    for (int k = 0; k < 3; ++k) {
      const float of_line = factor(of_lines[k * lines], inverse[k]);
      for (int e = 0; e < 4; ++e) factors[k][e] = of_line * of_place[k][e];
    }
    mover.move(now, first, valid, factors, factors);
  }
}

__device__ void moments_of_chunk(const Leaf& leaf, int64_t index, Mover& mover) {
  const int64_t origin = index * CHUNK, rest = mover.size - origin;
  const int count = int(rest < CHUNK ? rest : CHUNK);
  for (int i = 4 * (threadIdx.x % WARP); i < count; i += TILE) {
    const int valid = clamped(count - i);
    const Mover::Numbers now = mover.read(origin + i, valid);
    Position position(leaf.t, origin + i);
    float factors[3][4] = {};
    for (int e = 0; e < 4; ++e) {
      for (int k = 0; k < 3 && e < valid; ++k)
        factors[k][e] = packed_factor(leaf, position, k, line_mean(leaf, position, k), place_mean(leaf, position, k));
      position.next(leaf.t);
    }
    mover.move(now, origin + i, valid, factors, factors);
  }
}

__device__ void moments_of_vector(const Leaf& leaf, int64_t index, Mover& mover) {
  const int64_t origin = index * CHUNK, rest = mover.size - origin;
  const int count = int(rest < CHUNK ? rest : CHUNK);
  for (int i = 4 * (threadIdx.x % WARP); i < count; i += TILE) {
    const int valid = clamped(count - i);
    const Mover::Numbers now = mover.read(origin + i, valid);
    float factors[3][4], momentum_factors[3][4];
    for (int k = 0; k < 3; ++k) {
      const Four mean = numbers_of(read4(leaf.at.row + k * mover.size, FLOAT32, origin + i, valid, false), FLOAT32);
      for (int e = 0; e < 4; ++e) {
        factors[k][e] = vector_factor(mean.at[e]);
        momentum_factors[k][e] = vector_momentum_factor(mean.at[e]);
      }
    }
    mover.move(now, origin + i, valid, factors, momentum_factors);
  }
}

__global__ void __launch_bounds__(BLOCK, 2) moments(const Step step) {
  each_task(step, MOMENTS, WARPS, [&](const Task& task) {
    const Leaf leaf(step, task.tensor);
    Mover mover(step, leaf);
    if (leaf.t.vector) moments_of_vector(leaf, task.index, mover);
    else if (leaf.t.packed()) moments_of_chunk(leaf, task.index, mover);
    else moments_of_tile(leaf, task.index, mover);
    float* to = step.work + leaf.t.sums + task.index * OWN;
    for (int n = 0; n < OWN; ++n) {
      const float sum = warp_sum(mover.sums[n]);
      if (int(threadIdx.x) % WARP == n) to[n] = sum;
    }
  });
}

// Sums of squares of the statistics of lines (0) or places (1): three means and three roots. A thread adds some.
__device__ void sum_statistics(const Leaf& leaf, int which, float (*sums)[2 * SHARED]) {
  const int64_t count = which ? leaf.t.places() : leaf.t.lines();
  const float* means = which ? leaf.place() : leaf.line();
  for (int k = 0; k < 3; ++k) {
    float mean_squares = 0.0f, root_squares = 0.0f;
#pragma unroll 4
    for (int64_t n = threadIdx.x; n < count; n += WIDE) {
      const float mean = means[k * count + n], inverse = root(mean);
      mean_squares += mean * mean;
      root_squares += inverse * inverse;
    }
    mean_squares = warp_sum(mean_squares);
    root_squares = warp_sum(root_squares);
    if (threadIdx.x % WARP) continue;
    sums[threadIdx.x / WARP][SHARED * which + k] = mean_squares;
    sums[threadIdx.x / WARP][SHARED * which + 3 + k] = root_squares;
  }
}

// The scales of one tensor's 32 slots: what makes the mean square of a feature 1.
__global__ void __launch_bounds__(WIDE) scales(const Step step) {
  __shared__ double own[WIDE / OWN][OWN];
  __shared__ float shared[WIDE_WARPS][2 * SHARED];
  const Leaf leaf(step, blockIdx.x);
  const Tensor& t = leaf.t;
  const int64_t* ends = step.ends + MOMENTS * step.count + blockIdx.x;
  const int64_t tasks = ends[0] - (blockIdx.x ? ends[-1] : 0);
  const int thread = threadIdx.x;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t n = thread / OWN; n < tasks; n += WIDE / OWN) sum += double(step.work[t.sums + n * OWN + thread % OWN]);
  own[thread / OWN][thread % OWN] = sum;
  for (int which = 0; which < 2; ++which) sum_statistics(leaf, which, shared);
  __syncthreads();
  if (thread >= SLOTS) return;
  const int q = thread % OWN / 4, i = thread % 4, which = i / 2;
  int64_t count = t.size();
  sum = 0.0;
  if (thread < OWN) {
    for (int part = 0; part < WIDE / OWN; ++part) sum += own[part][thread];
  } else if (q < 3) {
    count = which ? t.places() : t.lines();
    for (int part = 0; part < WIDE_WARPS; ++part) sum += double(shared[part][SHARED * which + i % 2 * 3 + q]);
  }
  step.work[t.scales + thread] = count ? inverse_root(float(sum / double(count)) + 1e-5f) : 0.0f;
}

}  // namespace

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
  const int64_t lines = parts(t.lines(), WARP), places = parts(t.places(), WARP);
  tasks[SQUARES] = t.vector ? 0 : tiles(t, TILE) + (t.packed() ? lines * t.line_partials() : 0);
  tasks[MEANS] = t.vector ? parts(t.places(), WIDE) : lines + places;
  tasks[INVERSES] = t.vector ? 0 : wide(t) ? 3 * t.groups() : parts(3 * t.groups(), WIDE_WARPS);
  tasks[MOMENTS] = t.packed() ? parts(t.size(), CHUNK) : tiles(t, TILE);
  const int64_t moves = t.packed() ? parts(t.size(), STEPPED) : tiles(t, WARP);
  tasks[MOVE] = split ? 0 : moves;
  tasks[MOVE_SPLIT] = split ? moves : 0;
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
    t.sums = take(own[MOMENTS] * OWN);
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

// Writes integers into a GPU's memory, by launches that carry them: a graph that captures these keeps what they carry.
extern "C" int hyperopt_id_mulo_cuda_write(int64_t device, int64_t* to, const int64_t* from, int64_t count,
                                           void* stream) {
  int unused, failed = use(int(device), &unused);
  for (int64_t n = 0; n < count && !failed; n += MESSAGE) {
    Message message = {to + n, int(count - n < MESSAGE ? count - n : MESSAGE), {}};
    for (int i = 0; i < message.count; ++i) message.integers[i] = from[n + i];
    failed = launch(write, 1, WIDE, stream, message);
  }
  return failed;
}

// One step, the one after `steps` of them. All pointers but `sizes` are to the GPU's memory: the table; of each tensor
// param, grad, momentum, square, row and column; learning rates and weight decays [count][2]; θ [2409]; the number of
// steps; the workspace. Returns a CUDA error, or 0.
extern "C" int hyperopt_id_mulo_cuda_step(int64_t device, int64_t count, const int64_t* table, const void* pointers,
                                          const float* rates, const float* theta, const float* steps, float* work,
                                          const int64_t* sizes, float step_multiplier, void* stream) {
  const Step step{count,
                  table,
                  reinterpret_cast<const Tensor*>(table + PHASES * count),
                  static_cast<const Pointers*>(pointers),
                  rates,
                  reinterpret_cast<const Theta*>(theta),
                  steps,
                  work,
                  step_multiplier};
  int all = 1, failed = use(int(device), &all);
  auto run = [&](void (*kernel)(Step), int64_t blocks, int64_t most, int threads) {
    if (blocks && !failed) failed = launch(kernel, blocks < most ? blocks : most, threads, stream, step);
  };
  const int64_t* tasks = sizes + 2;
  run(squares, tasks[SQUARES], 3 * all, BLOCK);
  run(means, tasks[MEANS], 2 * all, WIDE);
  run(inverses, tasks[INVERSES], 2 * all, WIDE);
  run(moments, tasks[MOMENTS], 2 * all, BLOCK);
  run(scales, count, count, WIDE);
  run(move<Float16, MOVE>, tasks[MOVE], Float16::RESIDENT * all, MOVE_BLOCK);
  run(move<SplitFloat16, MOVE_SPLIT>, tasks[MOVE_SPLIT], SplitFloat16::RESIDENT * all, MOVE_BLOCK);
  return failed;
}
