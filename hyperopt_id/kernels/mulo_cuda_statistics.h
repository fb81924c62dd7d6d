// Means of g² over rows and columns, and what is worked out from all of them: the first three phases of mulo_cuda.cu.

namespace {

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
  const int64_t last = least((segment + 1) * SEGMENT, t.y);
  const int64_t origin = own / t.c * t.length() + own % t.c;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t y = segment * SEGMENT; y < last; ++y) {
    const float x = usable(load(at.grad, t.grad_type, origin + y * t.c));
    sum += x * x;
  }
  step.work[t.line_partial + segment * t.lines() + own] = sum;
}

__global__ void __launch_bounds__(BLOCK, 3) squares(const Step step) {
  each_task(step, SQUARES, WARPS, [&](const Task& task) {
    const int64_t segments = task.index - step.tensors[task.tensor].tiles(TILE);
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
    const float rate = factored_rate(step, warp);
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
        mean = mixed(factored_rate(step, k), mean, g * g + 1e-30f);
      }
    }
  }
}

// 1 / the mean of the rows of a group, for each decay.
__device__ void inverses_of(const Step& step, const Task& task, float* sums) {
  const Leaf leaf(step, task.tensor);
  const Tensor& t = leaf.t;
  const float* row = global(leaf.at.row);
  const bool wide = t.wide();
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int64_t own = wide ? task.index : task.index * WIDE_WARPS + warp, groups = t.groups(), members = t.members();
  const int64_t rows = t.rows_are_lines ? t.lines() : t.places(), slice = own % groups / t.c, c = own % t.c;
  const int64_t first = t.rows_are_lines ? (slice / t.b * t.x * t.b + slice % t.b) * t.c + c : slice * t.length() + c;
  const int64_t stride = t.rows_are_lines ? t.b * t.c : t.c;
  float sum = 0.0f;
  if (own < 3 * groups)
#pragma unroll 8
    for (int64_t m = wide ? threadIdx.x : lane; m < members; m += wide ? WIDE : WARP)
      sum += row[own / groups * rows + first + m * stride];
  sum = warp_sum(sum);
  if (wide) {
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int other = 0; other < WIDE_WARPS; ++other) sum += sums[other];
    __syncthreads();
  }
  if (own < 3 * groups && (wide ? threadIdx.x : lane) == 0)
    step.work[t.inverses + own] = 1.0f / (sum / float(members) + 1e-9f);
}

// Squares of 4096 statistics of lines, or of places, added up: means and roots of each decay, at their shared slots.
__device__ void squares_of_statistics(const Step& step, int64_t tensor, int64_t index,
                                      float (&sums)[WIDE_WARPS][SHARED]) {
  const Leaf leaf(step, tensor);
  const Tensor& t = leaf.t;
  const int64_t line_tasks = parts(t.lines(), ADDED);
  const bool line = index < line_tasks;
  const int64_t all = line ? t.lines() : t.places(), begin = (line ? index : index - line_tasks) * ADDED;
  const float* means = line ? leaf.line() : leaf.place();
  const int thread = threadIdx.x, k = thread / 4;
  for (int decay = 0; decay < 3; ++decay) {
    float mean_squares = 0.0f, root_squares = 0.0f;
#pragma unroll
    for (int i = 0; i < int(ADDED) / WIDE; ++i) {
      const int64_t n = begin + i * WIDE + thread;
      const float mean = n < all ? means[decay * all + n] : 0.0f, inverse = n < all ? root(mean) : 0.0f;
      mean_squares += mean * mean;
      root_squares += inverse * inverse;
    }
    mean_squares = warp_sum(mean_squares);
    root_squares = warp_sum(root_squares);
    if (thread % WARP) continue;
    sums[thread / WARP][2 * decay] = mean_squares;
    sums[thread / WARP][2 * decay + 1] = root_squares;
  }
  __syncthreads();
  if (thread < OWN) {
    float sum = 0.0f;
    if (k < 3 && line == (thread % 4 < 2))
      for (int warp = 0; warp < WIDE_WARPS; ++warp) sum += sums[warp][2 * k + thread % 2];
    step.work[t.statistics + index * OWN + thread] = sum;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(WIDE, 2) totals(const Step step) {
  __shared__ float sums[WIDE_WARPS][SHARED];
  for (int64_t n = blockIdx.x; n < step.ends[(TOTALS + 1) * step.count - 1]; n += gridDim.x) {
    const Task task = find(step, TOTALS, n);
    const int64_t statistics = task.index - step.tensors[task.tensor].sums_of_groups();
    if (statistics < 0) inverses_of(step, task, sums[0]);
    else squares_of_statistics(step, task.tensor, statistics, sums);
  }
}

}  // namespace
