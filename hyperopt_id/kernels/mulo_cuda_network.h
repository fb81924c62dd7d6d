// The network on tensor cores, 32 numbers of a warp at a time, and the new parameters: the last phase of mulo_cuda.cu.
//
// A quad is the four lanes of a warp that share rows of an operand: quad r = lane / 4 has the numbers 4r to 4r + 3, as
// rows r and r + 8 of two tiles of 16. Lane q < 3 of a quad computes the features of momentum q, lane 3 the others: one
// reads three values of a number and computes four own features of it, its *slots*, just where the first operand wants
// them. Shared features are four more slots: mean and root of the line, mean and root of the place, of decay q.
// What a lane holds of a hidden layer is again what it needs as operand of the next layer: slot i of block p is hidden
// unit 16p + 8(i / 2) + 2q + i % 2. So nothing is exchanged between lanes from the features to the outputs.

namespace {

// Products a [16, 16] b [16, 8]. A lane has four slots of the rows r and r + 8 of a, and four of a column of b; two of
// them are a *pair*. Float16 has the 11 bits of TF32, at twice its rate. Features, whose mean square is 1, are at most
// √(numbers of the tensor), which it holds for 2^32 numbers; hidden units are cut off at its largest value.
template <class Pair>
struct Operand {
  Pair first[2], second[2];  // rows r and r + 8
};

template <class Pair>
struct alignas(2 * sizeof(Pair)) Weights {
  Pair of[2];
};

struct Float16 {
  typedef uint32_t Pair;
  static constexpr int RESIDENT = 4;  // blocks of a multiprocessor, whose registers they share

  static __device__ Pair pair(float x, float y) { return to_float16(x, y); }
  static __device__ Pair rectified(float x, float y) { return to_rectified_float16(x, y); }
  static __device__ void multiply(float (&sum)[4], const Operand<Pair>& a, const Weights<Pair>& b) {
    multiply_float16(sum, a.first[0], a.second[0], a.first[1], a.second[1], b.of[0], b.of[1]);
  }
};

// The same from two float16 for each number: x = high + low to 22 bits; low · low is left out.
struct SplitFloat16 {
  struct alignas(8) Pair {
    uint32_t high, low;
  };
  static constexpr int RESIDENT = 3;

  static __device__ Pair pair(float x, float y) {
    const uint32_t high = to_float16(x, y);
    return {high, to_float16(x - from_float16(uint16_t(high)), y - from_float16(uint16_t(high >> 16)))};
  }
  static __device__ Pair rectified(float x, float y) {
    return pair(::rectified(x), ::rectified(y));
  }
  static __device__ void multiply(float (&sum)[4], const Operand<Pair>& a, const Weights<Pair>& b) {
    const Pair(&u)[2] = a.first, (&v)[2] = a.second;
    multiply_float16(sum, u[0].low, v[0].low, u[1].low, v[1].low, b.of[0].high, b.of[1].high);
    multiply_float16(sum, u[0].high, v[0].high, u[1].high, v[1].high, b.of[0].low, b.of[1].low);
    multiply_float16(sum, u[0].high, v[0].high, u[1].high, v[1].high, b.of[0].high, b.of[1].high);
  }
};

// What the loops of a warp's task need of its tensor, in shared memory, as it is the same for all lanes.
struct Job {
  float4 scales[4];  // of own slots
  Tile tile;
  int64_t tensor;
  const void* grad;
  void* param;
  const float* square;
  int grad_type, param_type, whole;
  int simple;         // all is float32, and can be read four at a time
  float rate, decay;  // learning rate, with the multiplier; what a parameter keeps
};

template <class Pair>
struct LineShare {  // what a line brings to the slots of a lane
  Pair line;
  float factor;
};

template <class Pair>
struct NumberShare {  // what line and place bring to those of one number
  Pair line, place;
  float factor, momentum_factor;
};

template <class Precision>
struct Network {  // of a block, in shared memory; weights as operands, the columns of the last ones again and again
  typedef typename Precision::Pair Pair;
  Weights<Pair> own[4][WARP], second[4][WARP][2], last[WARP][2];
  float4 constant[4][4], bias[4][4];  // what sums start from: units 8j + 2q and 8j + 2q + 1 of two rows
  float2 last_bias;
  Job jobs[MOVE_WARPS];
  union {
    LineShare<Pair> lines[LINES][4];
    NumberShare<Pair> numbers[WARP][4];
  } shares[MOVE_WARPS];
};

template <class Precision>
__device__ Weights<typename Precision::Pair> weights_of(const float (&slots)[4]) {
  return {{Precision::pair(slots[0], slots[1]), Precision::pair(slots[2], slots[3])}};
}

template <class Precision>
__device__ void prepare(const Step& step, Network<Precision>& net) {
  const Theta& theta = *step.theta;
  const int thread = threadIdx.x, lane = thread % WARP, q = lane % 4, j = thread / WARP, column = lane / 4;
  float slots[4];
  for (int i = 0; i < 4; ++i) slots[i] = theta.w0[OWN_FEATURES[4 * q + i]][8 * j + column];
  net.own[j][lane] = weights_of<Precision>(slots);
  for (int p = 0; p < 2; ++p) {
    const int unit = 16 * p + 2 * q;  // of slots 0 and 1
    for (int i = 0; i < 4; ++i) slots[i] = theta.w1[unit + i / 2 * 8 + i % 2][8 * j + column];
    net.second[j][lane][p] = weights_of<Precision>(slots);
    for (int i = 0; i < 4; ++i) slots[i] = theta.w2[unit + i / 2 * 8 + i % 2][column % 2];
    if (j == 0) net.last[lane][p] = weights_of<Precision>(slots);
  }
  if (thread == 0) net.last_bias = make_float2(theta.b2[0], theta.b2[1]);
  if (thread < OWN) {
    const int unit = thread * 2;
    float sums[2] = {theta.b0[unit], theta.b0[unit + 1]};
    for (int n = 0; n < TIMES; ++n) {
      const float time = tanhf(*step.steps / TAU[n] - 1.0f);
      for (int i = 0; i < 2; ++i) sums[i] += time * theta.w0[FEATURES + n][unit + i];
    }
    net.constant[thread / 4][thread % 4] = make_float4(sums[0], sums[1], sums[0], sums[1]);
    const float x = theta.b1[unit], y = theta.b1[unit + 1];
    net.bias[thread / 4][thread % 4] = make_float4(x, y, x, y);
  }
  __syncthreads();
}

// The first layer's weights of shared features, a lane's of units 8j to 8j + 7. The statistics of a vector's places are
// its rows' and its columns' as well.
template <class Precision>
__device__ Weights<typename Precision::Pair> shared_weights(const Theta& theta, const Tensor& t, int j) {
  const int q = threadIdx.x % 4, unit = 8 * j + threadIdx.x % WARP / 4;
  float slots[4] = {};
  if (q < 3)
    for (int i = 0; i < 4; ++i) {
      const int place = i / 2, feature = i % 2 * 3 + q;
      const float row = theta.w0[SHARED_FEATURES[0][feature]][unit];
      const float column = theta.w0[SHARED_FEATURES[1][feature]][unit];
      if (t.vector) slots[i] = place ? row + column : 0.0f;
      else slots[i] = bool(place) == bool(t.rows_are_lines) ? column : row;
    }
  return weights_of<Precision>(slots);
}

__device__ void prepare_job(const Step& step, const Task& task, const Leaf& leaf, Job& job) {
  __syncwarp();
  const int lane = threadIdx.x % WARP;
  if (lane < 4) job.scales[lane] = reinterpret_cast<const float4*>(step.work + leaf.t.scales)[lane];
  if (lane == 0) {
    job.tile = tile_of(leaf.t, leaf.t.b, leaf.t.length(), WARP, task.index);
    job.tensor = task.tensor;
    job.grad = leaf.at.grad;
    job.param = leaf.at.param;
    job.square = leaf.at.square;
    job.grad_type = int(leaf.t.grad_type);
    job.param_type = int(leaf.t.param_type);
    job.whole = leaf.whole();
    job.simple = job.whole && job.grad_type == FLOAT32 && job.param_type == FLOAT32;
    job.rate = step.multiplier * leaf.at.rate;
    job.decay = 1.0f - leaf.at.rate * leaf.at.decay;
  }
  __syncwarp();
}

// Where a lane finds momentum q, or lane 3 the weights.
struct Source {
  const void* from;
  int type;

  __device__ Source(const Leaf& leaf, int q)
      : from(q < 3 ? static_cast<const void*>(leaf.at.momentum + q * leaf.t.size()) : leaf.at.param),
        type(q < 3 ? int(FLOAT32) : int(leaf.t.param_type)) {}
};

// Of the four numbers of a lane: `u` is momentum q, or for lane 3 the weight.
struct Numbers {
  Raw u, g, v;

  __device__ Numbers(const Job& job, const Source& own, int64_t first, int valid) {
    if (job.simple && valid == 4) {
      u = read4(static_cast<const float*>(own.from) + first);
      g = read4(static_cast<const float*>(job.grad) + first);
      v = read4(job.square + first);
    } else {
      u = read4(own.from, own.type, first, valid, job.whole);
      g = read4(job.grad, job.grad_type, first, valid, job.whole);
      v = read4(job.square, FLOAT32, first, valid, job.whole);
    }
  }
};

// The two outputs, direction and magnitude, of the numbers of two tiles, from their units of the first layer.
template <class Precision, class Pair = typename Precision::Pair>
__device__ void outputs_of(const Network<Precision>& net, const Operand<Pair> (&hidden)[2][2], float (&out)[2][4]) {
  const int lane = threadIdx.x % WARP, q = lane % 4;
  const float2 bias = net.last_bias;
  for (int tile = 0; tile < 2; ++tile)
    for (int n = 0; n < 4; ++n) out[tile][n] = n % 2 ? bias.y : bias.x;
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    Operand<Pair> second[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = 2 * block + half;
      const float4 start = net.bias[j][q];
      const Weights<Pair> weights[2] = {net.second[j][lane][0], net.second[j][lane][1]};
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        float sum[4] = {start.x, start.y, start.z, start.w};
        for (int p = 0; p < 2; ++p) Precision::multiply(sum, hidden[tile][p], weights[p]);
        second[tile].first[half] = Precision::rectified(sum[0], sum[1]);
        second[tile].second[half] = Precision::rectified(sum[2], sum[3]);
      }
    }
    for (int tile = 0; tile < 2; ++tile) Precision::multiply(out[tile], second[tile], net.last[lane][block]);
  }
}

// The new parameters of 32 numbers from `first` on, of which `rest` are there. Given are a lane's four numbers, their
// factors of gradient and momentum (1 for lane 3), and the slots that they share with others.
template <class Precision, class Pair = typename Precision::Pair>
__device__ void move_numbers(const Network<Precision>& net, const Job& job, const Source& source,
                             const Numbers& numbers, const float (&factors)[4], const float (&momentum_factors)[4],
                             const Pair (&lines)[4], const Pair (&places)[4], const Weights<Pair> (&shared)[4],
                             int64_t first, int64_t rest) {
  const int lane = threadIdx.x % WARP, q = lane % 4;
  const float4 scale = job.scales[q];
  const Four us = numbers_of(numbers.u, source.type), gs = numbers_of(numbers.g, job.grad_type);
  const Four vs = numbers_of(numbers.v, FLOAT32);
  Operand<Pair> hidden[2][2];  // by tile and block of 16 units
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    Pair pairs[2][2];
    for (int row = 0; row < 2; ++row) {
      const int e = 2 * tile + row;
      const float u = us.at[e], v = vs.at[e], inverse = inverse_root(v + 1e-6f) * scale.y;
      pairs[row][0] = Precision::pair(u * scale.x, q < 3 ? u * inverse : inverse);
      pairs[row][1] = Precision::pair(usable(gs.at[e]) * (factors[e] * scale.z),
                                      (q < 3 ? u : v) * (momentum_factors[e] * scale.w));
    }
    const Operand<Pair> own = {{pairs[0][0], pairs[0][1]}, {pairs[1][0], pairs[1][1]}};
    const Operand<Pair> other = {{lines[2 * tile], places[2 * tile]}, {lines[2 * tile + 1], places[2 * tile + 1]}};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 start = net.constant[j][q];
      float sum[4] = {start.x, start.y, start.z, start.w};
      Precision::multiply(sum, other, shared[j]);
      Precision::multiply(sum, own, net.own[j][lane]);
      hidden[tile][j / 2].first[j % 2] = Precision::rectified(sum[0], sum[1]);
      hidden[tile][j / 2].second[j % 2] = Precision::rectified(sum[2], sum[3]);
    }
  }
  float out[2][4];
  outputs_of(net, hidden, out);
  // All lanes of a quad have the outputs of its numbers; lane q takes those of number q, which is this lane's of all.
  const float direction = q < 2 ? (q % 2 ? out[0][2] : out[0][0]) : (q % 2 ? out[1][2] : out[1][0]);
  const float magnitude = q < 2 ? (q % 2 ? out[0][3] : out[0][1]) : (q % 2 ? out[1][3] : out[1][1]);
  if (lane >= rest) return;
  const float before = load(job.param, job.param_type, first + lane);
  const float moved = job.decay * before - job.rate * direction * __expf(0.001f * magnitude);
  store(job.param, job.param_type, first + lane, moved);
}

// The slots that statistics of decay q are, scaled; lane 3 has none.
template <class Precision>
__device__ typename Precision::Pair shared_pair(const Leaf& leaf, float mean, int q, int place) {
  const float* scale = leaf.work + leaf.t.scales + OWN + 4 * q + 2 * place;
  return Precision::pair(mean * scale[0], root(mean) * scale[1]);
}

// Of 32 lines of a tile, or fewer, what they share with their numbers.
template <class Precision, class Pair = typename Precision::Pair>
__device__ void prepare_lines(const Leaf& leaf, const Tile& tile, int first, LineShare<Pair> (*to)[4]) {
  const int lane = threadIdx.x % WARP;
  __syncwarp();
  to[lane][3] = {Precision::pair(0.0f, 0.0f), 1.0f};
  for (int q = 0; q < 3 && first + lane < tile.lines; ++q) {
    const float mean = leaf.line()[q * leaf.t.lines() + tile.line + (first + lane) * tile.stride];
    const float inverse = leaf.t.rows_are_lines ? leaf.inverse(q, tile.slice) : 1.0f;
    to[lane][q] = {shared_pair<Precision>(leaf, mean, q, 0), factor(mean, inverse)};
  }
  __syncwarp();
}

template <class Precision, class Pair = typename Precision::Pair>
__device__ void move_tile(const Step& step, const Leaf& leaf, Network<Precision>& net) {
  const Job& job = net.jobs[threadIdx.x / WARP];
  const Tile& tile = job.tile;
  const int lane = threadIdx.x % WARP, q = lane % 4, mine = lane / 4 * 4, valid = clamped(tile.places - mine);
  const Source own(leaf, q);
  LineShare<Pair>(*lines)[4] = net.shares[threadIdx.x / WARP].lines;
  Weights<Pair> shared[4];
  for (int j = 0; j < 4; ++j) shared[j] = shared_weights<Precision>(*step.theta, leaf.t, j);
  float of_place[4];
  Pair places[4];
  for (int e = 0; e < 4; ++e) {
    of_place[e] = 1.0f;
    places[e] = Precision::pair(0.0f, 0.0f);
    if (q == 3 || e >= valid) continue;
    const int64_t place = tile.slice * leaf.t.length() + tile.l + mine + e;
    const float mean = leaf.place()[q * leaf.t.places() + place];
    of_place[e] = factor(mean, leaf.t.rows_are_lines ? 1.0f : leaf.inverse(q, tile.slice));
    places[e] = shared_pair<Precision>(leaf, mean, q, 1);
  }
  const int64_t stride = tile.stride * leaf.t.length();
  int64_t first = tile.line * leaf.t.length() + tile.l;
  for (int i = 0; i < tile.lines; ++i, first += stride) {
    if (i % LINES == 0) prepare_lines<Precision>(Leaf(step, job.tensor), tile, i, lines);
    const Numbers numbers(job, own, first + mine, valid);
    const LineShare<Pair> line = lines[i % LINES][q];
    float factors[4];
    for (int e = 0; e < 4; ++e) factors[e] = of_place[e] * line.factor;
    const Pair same[4] = {line.line, line.line, line.line, line.line};
    move_numbers<Precision>(net, job, own, numbers, factors, factors, same, places, shared, first, tile.places);
  }
}

// Of 32 numbers of a packed tensor, what they share with others.
template <class Precision, class Pair = typename Precision::Pair>
__device__ void prepare_numbers(const Leaf& leaf, int64_t number, bool valid, NumberShare<Pair> (*to)[4]) {
  NumberShare<Pair>(&own)[4] = to[threadIdx.x % WARP];
  const Pair zero = Precision::pair(0.0f, 0.0f);
  __syncwarp();
  for (int q = 0; q < 4; ++q) own[q] = {zero, zero, 1.0f, 1.0f};
  if (valid) {
    const Position position(leaf.t, number);
    for (int q = 0; q < 3; ++q) {
      const float of_place = place_mean(leaf, position, q);
      own[q].place = shared_pair<Precision>(leaf, of_place, q, 1);
      if (leaf.t.vector) {
        own[q].factor = vector_factor(of_place);
        own[q].momentum_factor = vector_momentum_factor(of_place);
      } else {
        const float of_line = line_mean(leaf, position, q);
        own[q].line = shared_pair<Precision>(leaf, of_line, q, 0);
        own[q].factor = own[q].momentum_factor = packed_factor(leaf, position, q, of_line, of_place);
      }
    }
  }
  __syncwarp();
}

template <class Precision, class Pair = typename Precision::Pair>
__device__ void move_chunk(const Step& step, const Leaf& leaf, int64_t index, Network<Precision>& net) {
  const Job& job = net.jobs[threadIdx.x / WARP];
  const int lane = threadIdx.x % WARP, q = lane % 4, mine = lane / 4 * 4;
  const Source own(leaf, q);
  NumberShare<Pair>(*shares)[4] = net.shares[threadIdx.x / WARP].numbers;
  Weights<Pair> shared[4];
  for (int j = 0; j < 4; ++j) shared[j] = shared_weights<Precision>(*step.theta, leaf.t, j);
  const int64_t last = least((index + 1) * STEPPED, leaf.t.size());
  for (int64_t first = index * STEPPED; first < last; first += WARP) {
    const Numbers numbers(job, own, first + mine, clamped(last - first - mine));
    prepare_numbers<Precision>(leaf, first + lane, first + lane < last, shares);
    float factors[4], momentum_factors[4];
    Pair lines[4], places[4];
    for (int e = 0; e < 4; ++e) {
      const NumberShare<Pair> share = shares[mine + e][q];
      lines[e] = share.line;
      places[e] = share.place;
      factors[e] = share.factor;
      momentum_factors[e] = share.momentum_factor;
    }
    move_numbers<Precision>(net, job, own, numbers, factors, momentum_factors, lines, places, shared, first,
                            last - first);
  }
}

template <class Precision>
__device__ void move_all(const Step& step, int phase, Network<Precision>& net) {
  prepare(step, net);
  each_task(step, phase, MOVE_WARPS, [&](const Task& task) {
    const Leaf leaf(step, task.tensor);
    prepare_job(step, task, leaf, net.jobs[threadIdx.x / WARP]);
    if (leaf.t.packed()) move_chunk(step, leaf, task.index, net);
    else move_tile(step, leaf, net);
  });
}

__global__ void __launch_bounds__(MOVE_BLOCK, Float16::RESIDENT) move(const Step step) {
  __shared__ Network<Float16> net;
  move_all(step, MOVE, net);
}

__global__ void __launch_bounds__(MOVE_BLOCK, SplitFloat16::RESIDENT) move_split(const Step step) {
  __shared__ Network<SplitFloat16> net;
  move_all(step, MOVE_SPLIT, net);
}

}  // namespace
