// Momenta and mean square moved on, and the scales of the features: the two phases before the last of mulo_cuda.cu.

namespace {

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

// Calls visit(first, valid) for the numbers of a chunk that are this lane's, four at a time.
template <class Visit>
__device__ void each_four(int64_t size, int64_t index, Visit visit) {
  const int64_t origin = index * CHUNK;
  const int count = int(least(CHUNK, size - origin));
  for (int i = 4 * (threadIdx.x % WARP); i < count; i += TILE) visit(origin + i, clamped(count - i));
}

__device__ void moments_of_chunk(const Leaf& leaf, int64_t index, Mover& mover) {
  each_four(mover.size, index, [&](int64_t first, int valid) {
    const Mover::Numbers now = mover.read(first, valid);
    Position position(leaf.t, first);
    float factors[3][4] = {};
    for (int e = 0; e < 4; ++e) {
      for (int k = 0; k < 3 && e < valid; ++k)
        factors[k][e] = packed_factor(leaf, position, k, line_mean(leaf, position, k), place_mean(leaf, position, k));
      position.next(leaf.t);
    }
    mover.move(now, first, valid, factors, factors);
  });
}

__device__ void moments_of_vector(const Leaf& leaf, int64_t index, Mover& mover) {
  each_four(mover.size, index, [&](int64_t first, int valid) {
    const Mover::Numbers now = mover.read(first, valid);
    float factors[3][4], momentum_factors[3][4];
    for (int k = 0; k < 3; ++k) {
      const Four mean = numbers_of(read4(leaf.at.row + k * mover.size, FLOAT32, first, valid, false), FLOAT32);
      for (int e = 0; e < 4; ++e) {
        factors[k][e] = vector_factor(mean.at[e]);
        momentum_factors[k][e] = vector_momentum_factor(mean.at[e]);
      }
    }
    mover.move(now, first, valid, factors, momentum_factors);
  });
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

// The scales of one tensor's 32 slots: what makes the mean square of a feature 1.
__global__ void __launch_bounds__(WIDE) scales(const Step step) {
  constexpr int PARTS = WIDE / SLOTS;
  __shared__ double sums[PARTS][SLOTS];
  const Tensor& t = step.tensors[blockIdx.x];
  const int part = threadIdx.x / SLOTS, slot = threadIdx.x % SLOTS;
  const bool own = slot < OWN;
  const int64_t tasks = own ? t.moments() : t.sums_of_statistics();
  const float* from = step.work + (own ? t.sums : t.statistics) + slot % OWN;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t n = part; n < tasks; n += PARTS) sum += double(from[n * OWN]);
  sums[part][slot] = sum;
  __syncthreads();
  if (part > 0) return;
  for (int other = 1; other < PARTS; ++other) sum += sums[other][slot];
  const int64_t count = own ? t.size() : slot % 4 < 2 ? t.lines() : t.places();
  step.work[t.scales + slot] = count ? inverse_root(float(sum / double(count)) + 1e-5f) : 0.0f;
}

}  // namespace
