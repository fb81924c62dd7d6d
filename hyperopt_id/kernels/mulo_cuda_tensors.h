// Tensors as the kernels see them: a table of shapes with places in the workspace, their tasks, and numbers in memory.

namespace {

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { SQUARES, MEANS, TOTALS, MOMENTS, MOVE, MOVE_SPLIT, PHASES };  // `scales` has a block for every tensor
constexpr int OWN = 16, SHARED = 6, SLOTS = 32, FEATURES = 28, TIMES = 11, HIDDEN = 32;
constexpr int WARP = 32, WARPS = 8, BLOCK = WARPS * WARP;  // of the launches whose tasks belong to warps
constexpr int MOVE_WARPS = 4, MOVE_BLOCK = MOVE_WARPS * WARP;
constexpr int WIDE_WARPS = 16, WIDE = WIDE_WARPS * WARP;   // of the others
constexpr int64_t SHORT = 32;       // a line shorter than this is not worth a computation of its own
constexpr int64_t TILE = 4 * WARP;  // places of a tile: four for a lane
constexpr int64_t LINES = 32;       // of a slab, at least
constexpr int64_t MOST_SLABS = 1024;
constexpr int64_t SEGMENT = 256;   // terms of a sum over y, where lines are packed
constexpr int64_t ADDED = 4096;    // statistics whose squares a block adds up
constexpr int64_t CHUNK = 4096;    // numbers of a task of moments, where lines are packed
constexpr int64_t STEPPED = 1024;  // numbers of a task of move, likewise
__device__ constexpr float TAU[TIMES] = {1.0f, 3.0f, 10.0f, 30.0f, 100.0f, 300.0f, 1e3f, 3e3f, 1e4f, 3e4f, 1e5f};

// The feature that is slot i of lane q, at 4q + i: of the momenta m, m/√v, gF, mF; of lane 3 w, 1/√v, g, v.
__device__ constexpr int OWN_FEATURES[OWN] = {2, 6, 10, 25, 3, 7, 11, 26, 4, 8, 12, 27, 1, 9, 0, 5};
// The features that are statistics of rows and of columns: three means, three roots.
__device__ constexpr int SHARED_FEATURES[2][SHARED] = {{13, 14, 15, 19, 20, 21}, {16, 17, 18, 22, 23, 24}};

__host__ __device__ constexpr int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

__host__ __device__ constexpr int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

struct Shape {  // as Python hands it over: 9 integers
  int64_t a, x, b, y, c;
  int64_t rows_are_lines;  // 1: rows are lines; 0: rows are places
  int64_t vector;
  int64_t param_type, grad_type;
};

struct Tensor : Shape {  // with what the host works out from it
  int64_t slab;  // lines of a slab
  int64_t line_partial, place_partial, inverses, sums, statistics, scales;  // where in the workspace

  __host__ __device__ int64_t length() const { return y * c; }
  __host__ __device__ int64_t size() const { return a * x * b * y * c; }
  __host__ __device__ int64_t lines() const { return vector ? 0 : a * x * b * c; }
  __host__ __device__ int64_t places() const { return a * b * y * c; }
  __host__ __device__ int64_t groups() const { return a * b * c; }  // of rows, which are divided by their common mean
  __host__ __device__ int64_t members() const { return rows_are_lines ? x : y; }  // of a group
  __host__ __device__ bool packed() const { return vector || c > 1 || length() < SHORT; }
  __host__ __device__ int64_t slabs() const { return parts(x, slab); }
  __host__ __device__ int64_t line_partials() const { return packed() ? parts(y, SEGMENT) : parts(length(), TILE); }
  // Of so many places each; where lines are packed, all b of a slab are side by side.
  __host__ __device__ int64_t tiles(int64_t width) const {
    return a * slabs() * (packed() ? parts(b * length(), width) : b * parts(length(), width));
  }
  // Whether the sum over the members of a group is worth a block; else it belongs to a warp.
  __host__ __device__ bool wide() const { return members() > WIDE; }
  // Tasks by phase; those of `totals` are of two kinds.
  __host__ __device__ int64_t means() const { return parts(lines(), WARP) + parts(places(), WARP); }
  __host__ __device__ int64_t sums_of_groups() const {
    return vector ? 0 : wide() ? 3 * groups() : parts(3 * groups(), WIDE_WARPS);
  }
  __host__ __device__ int64_t sums_of_statistics() const { return parts(lines(), ADDED) + parts(places(), ADDED); }
  __host__ __device__ int64_t moments() const { return packed() ? parts(size(), CHUNK) : tiles(TILE); }
  __host__ __device__ int64_t moves() const { return packed() ? parts(size(), STEPPED) : tiles(WARP); }
};

struct Pointers {  // and what else changes between steps, as Python hands it over
  void* param;
  const void* grad;
  float *momentum, *square, *row, *column;
  float rate, decay;  // learning rate, weight decay
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

// 1 - beta of the factored accumulators.
__device__ float factored_rate(const Step& step, int k) {
  return 1.0f - kept(decayed(initial(k), step.theta->factored[k]));
}

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
  tile.lines = int(least(t.slab, t.x - tile.x));
  tile.places = int(least(width, length - tile.l));
  return tile;
}

}  // namespace
