// The phases of a step (see mulo_cpu.cpp), with vectors of LANES floats, in a namespace ISA. Included once for each
// instruction set, so without a guard.

namespace {
namespace ISA {

constexpr int VECTORS = 3, BLOCK = VECTORS * LANES;  // numbers computed together
constexpr int UNITS = LANES == 16 ? 8 : 4;           // hidden units computed together: UNITS·VECTORS sums in registers
constexpr int64_t SPAN = 128;                        // numbers squared together
static_assert(WIDEST % BLOCK == 0 && MOST_PLACES % WIDEST == 0 && MOST_PERIOD <= SPAN, "pieces consist of blocks");
typedef float Vector __attribute__((vector_size(LANES * 4), may_alias));
typedef float Layer[HIDDEN][BLOCK];

// Numbers of 16 bits, by integer arithmetic that compilers turn into vectors. Rounding is to nearest, ties to even.

float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16;
  const uint32_t bits = as_bits(as_float(uint32_t(half & 0x7fff) << 13) * as_float(0x77800000));  // times 2^112
  return as_float(sign | bits | ((half & 0x7c00) == 0x7c00 ? 0x7f800000 : 0));  // infinite, or not a number
}

uint16_t to_float16(float value) {
  const uint32_t bits = as_bits(value), sign = bits & 0x80000000, size = bits ^ sign;
  const uint32_t normal = (size + 0xc8000fff + (size >> 13 & 1)) >> 13;  // another exponent, and rounded
  const uint32_t small = as_bits(as_float(size) + 0.5f) - 0x3f000000;    // the addition rounds
  const uint32_t special = size > 0x7f800000 ? 0x7e00 : 0x7c00;
  return uint16_t(sign >> 16 | (size >= 0x47800000 ? special : size < 0x38800000 ? small : normal));
}

uint16_t to_bfloat16(float value) {
  const uint32_t bits = as_bits(value);
  const bool number = (bits & 0x7fffffff) <= 0x7f800000;
  return uint16_t(number ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
}

template <class Count>
void load(float* to, int64_t address, int64_t type, int64_t first, Count count) {
  if (type == FLOAT32) {
    std::memcpy(to, numbers<const float>(address) + first, count * sizeof(float));
    return;
  }
  const uint16_t* from = numbers<const uint16_t>(address) + first;
  if (type == BFLOAT16)
    for (int64_t i = 0; i < count; ++i) to[i] = as_float(uint32_t(from[i]) << 16);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = from_float16(from[i]);
}

void store(int64_t address, int64_t type, int64_t first, int64_t count, const float* from) {
  if (type == FLOAT32) {
    std::memcpy(numbers<float>(address) + first, from, count * sizeof(float));
    return;
  }
  uint16_t* to = numbers<uint16_t>(address) + first;
  if (type == BFLOAT16)
    for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = to_float16(from[i]);
}

template <class Count>
void load_gradient(float* to, const Tensor& t, int64_t first, Count count) {
  load(to, t.grad, t.grad_type, first, count);
  for (int64_t i = 0; i < count; ++i) to[i] = std::fabs(to[i]) <= LARGEST ? to[i] : 0.0f;
}

// Phase 1: for the lines of one slab, line means of g² complete, place sums for the slab.
void squares(const Step& step, int64_t index, int64_t slab) {
  const Tensor& t = step.tensors[index];
  const Work& w = step.work[index];
  const int64_t length = t.length(), places = t.places(), c = t.c;
  const float* beta = step.decays.factored;
  float* partial = w.partial + slab * places;
  std::memset(partial, 0, places * sizeof(float));
  alignas(64) float g[SPAN], few[SPAN];
  const int64_t period = c < SPAN ? SPAN / c * c : c;  // of the sums of a line: the whole of every c, perhaps often
  for (int64_t a = 0; a < t.a; ++a)
    for (int64_t x = t.x * slab / w.slabs; x < t.x * (slab + 1) / w.slabs; ++x)
      for (int64_t b = 0; b < t.b; ++b) {
        const int64_t line = (a * t.x + x) * t.b + b;
        float* place = partial + (a * t.b + b) * length;
        float* sums = c < SPAN ? few : w.line.root + line * c;  // the roots are not there yet
        std::memset(sums, 0, period * sizeof(float));
        for (int64_t first = 0; first < length; first += period)
          for (int64_t at = 0, end = least(period, length - first); at < end; at += SPAN) {
            const int64_t count = least(SPAN, end - at);
            load_gradient(g, t, line * length + first + at, count);
            for (int64_t i = 0; i < count; ++i) sums[at + i] += g[i] * g[i];
            for (int64_t i = 0; i < count; ++i) place[first + at + i] += g[i] * g[i];
          }
        int64_t left = period;
        for (; left % (2 * c) == 0; left /= 2)
          for (int64_t i = 0; i < left / 2; ++i) sums[i] += sums[left / 2 + i];
        for (int64_t i = c; i < left; ++i) sums[i % c] += sums[i];
        for (int k = 0; k < 3; ++k)
          for (int64_t i = 0; i < c; ++i) {
            float& mean = w.line.mean[k * w.line.count + line * c + i];
            mean = beta[k] * mean + (1.0f - beta[k]) * (sums[i] / float(t.y) + 1e-30f);
          }
      }
}

// What statistics contribute to the features by themselves: their roots, and the scales of both.
void finish_statistics(const Statistics& s, float* scale, const int* features) {
  for (int k = 0; k < 3; ++k) {
    const float* mean = s.mean + k * s.count;
    float* root = s.root + k * s.count;
    double means[LANES] = {}, roots[LANES] = {};
    for (int64_t first = 0; first < s.count; first += LANES) {
      const int64_t count = least(LANES, s.count - first);
      for (int64_t i = 0; i < count; ++i) root[first + i] = inverse_root(mean[first + i] + 1e-8f);
      for (int64_t i = 0; i < count; ++i) means[i] += double(mean[first + i]) * mean[first + i];
      for (int64_t i = 0; i < count; ++i) roots[i] += double(root[first + i]) * root[first + i];
    }
    for (int lane = 1; lane < LANES; ++lane) means[0] += means[lane], roots[0] += roots[lane];
    scale[features[k]] = inverse_root(float(means[0] / double(s.count)) + 1e-5f);
    scale[features[k + 3]] = inverse_root(float(roots[0] / double(s.count)) + 1e-5f);
  }
}

// Phase 2: place statistics from the sums of the slabs; factors and roots of lines and places.
void statistics(const Step& step, int64_t index) {
  const Tensor& t = step.tensors[index];
  Work& w = step.work[index];
  if (w.kind == VECTOR) return;
  const float* beta = step.decays.factored;
  const int64_t places = t.places(), length = t.length();
  for (int64_t slab = 1; slab < w.slabs; ++slab)
    for (int64_t i = 0; i < places; ++i) w.partial[i] += w.partial[slab * places + i];
  for (int k = 0; k < 3; ++k)
    for (int64_t i = 0; i < places; ++i) {
      float& mean = w.place.mean[k * places + i];
      mean = beta[k] * mean + (1.0f - beta[k]) * (w.partial[i] / float(t.x) + 1e-30f);
    }
  const Statistics& row = t.row_is_line ? w.line : w.place;
  const Statistics& column = t.row_is_line ? w.place : w.line;
  for (int64_t i = 0; i < 3 * column.count; ++i) column.factor[i] = inverse_root(larger(column.mean[i], 1e-9f));
  // The rows of one (a, b, c) are divided by their mean, over x where rows are lines, else over y.
  const int64_t members = t.row_is_line ? t.x : t.y, stride = t.row_is_line ? t.b * t.c : t.c;
  for (int k = 0; k < 3; ++k)
    for (int64_t a = 0; a < t.a; ++a)
      for (int64_t b = 0; b < t.b; ++b)
        for (int64_t c = 0; c < t.c; ++c) {
          const int64_t inside = t.row_is_line ? (a * t.x * t.b + b) * t.c : (a * t.b + b) * length;
          const float* mean = row.mean + k * row.count + inside + c;
          float* factor = row.factor + k * row.count + inside + c;
          double sum = 0.0;
          for (int64_t i = 0; i < members; ++i) sum += mean[i * stride];
          const float all = float(sum / double(members)) + 1e-9f;
          for (int64_t i = 0; i < members; ++i)
            factor[i * stride] = inverse_root(larger(mean[i * stride] / all, 1e-9f));
        }
  finish_statistics(row, w.scale, ROW_FEATURES);
  finish_statistics(column, w.scale, COLUMN_FEATURES);
}

struct Block {  // adjacent numbers in memory, at most BLOCK
  int64_t first, count;  // counted in the tensor
  int64_t line, place;   // where lines are long: (a·X + x)·B + b, and the place in the slice
};

struct Whole {  // the count of most blocks, which loops over it are compiled for
  constexpr operator int64_t() const { return BLOCK; }
};

template <class Visit>
void each_block(const Tensor& t, const Piece& piece, Visit visit) {
  for (int64_t x = piece.x; x < piece.x + piece.lines; ++x) {
    const int64_t line = (piece.a * t.x + x) * t.b + piece.b, origin = line * t.length() + piece.place;
    for (int64_t i = 0; i < piece.places; i += BLOCK)
      visit(Block{origin + i, least(BLOCK, piece.places - i), line, piece.place + i});
  }
}

struct Task {  // what a thread has at hand for one piece
  const Step& step;
  const Tensor& t;
  Work& w;
  const Piece piece;
  const bool updates;  // in the phase moments accumulators move on, and statistics need not become inputs
  int64_t line_read = -1;
  alignas(64) float line[9][MOST_PERIOD + BLOCK];  // factors, means, roots of one long line, see `repeat`
  alignas(64) float in[INPUTS][BLOCK] = {};        // own features, then those of the line (or vector), the place
  alignas(64) float factor[3][BLOCK], vector_factor[3][BLOCK];  // of the features 10-12, and 25-27 of a vector

  Task(const Step& step, int64_t index, int64_t number, bool updates)
      : step(step), t(step.tensors[index]), w(step.work[index]), piece(piece_of(t, w, number)), updates(updates) {}
};

// The statistics for every c, and again, as far as a block that begins anywhere in C can reach.
void repeat(const float* from, int64_t c, float* to) {
  for (int i = 0; i < BLOCK && c == 1; ++i) to[i] = *from;
  for (int64_t i = 0; i < c + BLOCK && c > 1; ++i) to[i] = i < c ? from[i] : to[i - c];
}

template <class Count>
void long_statistics(Task& task, const Block& block, Count count) {
  const Statistics &line = task.w.line, &place = task.w.place;
  const int64_t c = task.t.c, first = c > 1 ? block.place % c : 0;
  const bool inputs = c > 1 && !task.updates;  // where C is 1, a line's share is part of the bias
  if (task.line_read != block.line) {
    task.line_read = block.line;
    const float* all[] = {line.factor, line.mean, line.root};
    for (int n = 0; n < (inputs ? 9 : 3); ++n)
      repeat(all[n / 3] + n % 3 * line.count + block.line * c, c, task.line[n]);
  }
  const int64_t at = (task.piece.a * task.t.b + task.piece.b) * task.t.length() + block.place;
  for (int k = 0; k < 3; ++k) {
    const float *of_line = task.line[k] + first, *of_place = place.factor + k * place.count + at;
    for (int64_t i = 0; i < count; ++i) task.factor[k][i] = of_line[i] * of_place[i];
  }
  for (int n = 0; n < SHARED && inputs; ++n) std::memcpy(task.in[OWN + n], task.line[3 + n] + first, sizeof task.in[0]);
}

template <class Count>
void short_statistics(Task& task, const Block& block, Count count) {
  const Tensor& t = task.t;
  const int64_t length = t.length();
  int64_t line[BLOCK], place[BLOCK];  // which statistics are whose
  int64_t l = block.first % length, b = block.first / length % t.b, x = block.first / length / t.b % t.x;
  int64_t a = block.first / length / t.b / t.x, c = l % t.c;
  for (int64_t i = 0; i < count; ++i) {
    line[i] = ((a * t.x + x) * t.b + b) * t.c + c;
    place[i] = (a * t.b + b) * length + l;
    if (++c == t.c) c = 0;
    if (++l < length) continue;
    l = 0;
    if (++b < t.b) continue;
    b = 0;
    if (++x == t.x) x = 0, ++a;
  }
  auto look_up = [&](const Statistics& s, const float* from, int k, const int64_t* index, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[k * s.count + index[i]];
  };
  alignas(64) float of_place[BLOCK];
  const Statistics &lines = task.w.line, &places = task.w.place;
  for (int k = 0; k < 3; ++k) {
    look_up(lines, lines.factor, k, line, task.factor[k]);
    look_up(places, places.factor, k, place, of_place);
    for (int64_t i = 0; i < count; ++i) task.factor[k][i] *= of_place[i];
    if (task.updates) continue;
    look_up(lines, lines.mean, k, line, task.in[OWN + k]);
    look_up(lines, lines.root, k, line, task.in[OWN + 3 + k]);
    look_up(places, places.mean, k, place, task.in[OWN + SHARED + k]);
    look_up(places, places.root, k, place, task.in[OWN + SHARED + 3 + k]);
  }
}

template <class Count>
void vector_statistics(Task& task, const Block& block, Count count) {
  const float *beta = task.step.decays.factored, *g = task.in[0];
  for (int k = 0; k < 3; ++k) {
    float *stored = numbers<float>(task.t.row) + k * task.t.size() + block.first, *mean = task.in[OWN + k];
    std::memcpy(mean, stored, count * sizeof(float));
    if (task.updates) {
      for (int i = 0; i < BLOCK; ++i) mean[i] = beta[k] * mean[i] + (1.0f - beta[k]) * (g[i] * g[i] + 1e-30f);
      std::memcpy(stored, mean, count * sizeof(float));
    }
    for (int i = 0; i < BLOCK; ++i) {
      task.in[OWN + 3 + k][i] = inverse_root(mean[i] + 1e-8f);
      task.factor[k][i] = inverse_root(larger(mean[i] + 1e-9f, 1e-9f));
      task.vector_factor[k][i] = inverse_root(mean[i] + 1e-6f);
    }
  }
}

void multiply(const float* one, const float* other, float* product) {
  const Vector *x = reinterpret_cast<const Vector*>(one), *y = reinterpret_cast<const Vector*>(other);
  for (int v = 0; v < VECTORS; ++v) reinterpret_cast<Vector*>(product)[v] = x[v] * y[v];
}

// The inputs of a block, not normalized. Lanes beyond its count have numbers that mean nothing.
template <class Count>
void read(Task& task, const Block& block, Count count) {
  const Tensor& t = task.t;
  float(*f)[BLOCK] = task.in;
  load_gradient(f[0], t, block.first, count);
  load(f[1], t.param, t.param_type, block.first, count);
  auto accumulate = [&](float* stored, float* mean, float beta, const float* x) {
    std::memcpy(mean, stored, count * sizeof(float));
    if (!task.updates) return;
    for (int i = 0; i < BLOCK; ++i) mean[i] = beta * mean[i] + (1.0f - beta) * x[i];
    std::memcpy(stored, mean, count * sizeof(float));
  };
  alignas(64) float square[BLOCK];
  multiply(f[0], f[0], square);
  const Decays& beta = task.step.decays;
  for (int k = 0; k < 3; ++k)
    accumulate(numbers<float>(t.momentum) + k * t.size() + block.first, f[2 + k], beta.momentum[k], f[0]);
  accumulate(numbers<float>(t.square) + block.first, f[5], beta.square, square);
  const Kind kind = task.w.kind;
  (kind == LONG ? long_statistics<Count> : kind == SHORT ? short_statistics<Count> : vector_statistics<Count>)(
      task, block, count);
  for (int i = 0; i < BLOCK; ++i) f[9][i] = inverse_root(f[5][i] + 1e-6f);
  for (int k = 0; k < 3; ++k) {
    const float* own = (kind == VECTOR ? task.vector_factor : task.factor)[k];
    multiply(f[2 + k], f[9], f[6 + k]);
    multiply(f[0], task.factor[k], f[10 + k]);
    multiply(f[2 + k], own, f[13 + k]);
  }
}

void read(Task& task, const Block& block) {
  if (block.count == BLOCK)
    read(task, block, Whole());
  else
    read(task, block, block.count);
}

// Phase 3: the momenta and the mean square move on, and the squares of the features are summed up.
void moments(const Step& step, int64_t index, int64_t number) {
  Task task(step, index, number, true);
  const int rows = task.w.kind == VECTOR ? SUMS : OWN;
  Vector sums[SUMS] = {};
  each_block(task.t, task.piece, [&](const Block& block) {
    read(task, block);
    for (int n = 0; n < rows; ++n) {
      for (int64_t i = block.count; i < BLOCK; ++i) task.in[n][i] = 0.0f;
      const Vector* x = reinterpret_cast<const Vector*>(task.in[n]);
      for (int v = 0; v < VECTORS; ++v) sums[n] += x[v] * x[v];
    }
  });
  for (int n = 0; n < rows; ++n) {
    double sum = 0.0;
    for (int lane = 0; lane < LANES; ++lane) sum += sums[n][lane];
    task.w.sums[number * SUMS + n] = sum;
  }
}

// visit(unit, v, sum) for every unit and vector v of the N first ones, where
// sum = start[unit] + bias[unit] + Σ in[k] weight[k][unit], `start` being optional.
template <int N, class Visit>
void layer(int inputs, const float (*weight)[HIDDEN], const float (*in)[BLOCK], const Layer* start, const float* bias,
           Visit visit) {
  for (int unit = 0; unit < HIDDEN; unit += UNITS) {
    Vector sum[UNITS][N];
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u)
#pragma GCC unroll 3
      for (int v = 0; v < N; ++v) {
        sum[u][v] = bias[unit + u] + Vector{};
        if (start) sum[u][v] += reinterpret_cast<const Vector*>((*start)[unit + u])[v];
      }
    for (int k = 0; k < inputs; ++k) {
      const Vector* x = reinterpret_cast<const Vector*>(in[k]);
#pragma GCC unroll 8
      for (int u = 0; u < UNITS; ++u)
#pragma GCC unroll 3
        for (int v = 0; v < N; ++v) sum[u][v] += weight[k][unit + u] * x[v];
    }
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u)
#pragma GCC unroll 3
      for (int v = 0; v < N; ++v) visit(unit + u, v, sum[u][v]);
  }
}

// e^x by 2^n and a Taylor series on |r| <= ln(2)/2.
float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // its last bits are the integer n
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float sum = 1.0f / 720.0f;
  for (float next : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) sum = sum * r + next;
  return sum * as_float((as_bits(shifted) + 127) << 23);
}

// direction · e^(0.001 magnitude) of a block, to `moves`; the first layer starts from `start` and `bias`.
template <int N>
void network(const Task& task, const float (*weight)[HIDDEN], int inputs, const Layer* start, const float* bias,
             float* moves) {
  const Theta& theta = *task.step.theta;
  const Vector zero = {};
  alignas(64) Layer hidden;
  layer<N>(inputs, weight, task.in, start, bias, [&](int unit, int v, const Vector& sum) {
    reinterpret_cast<Vector*>(hidden[unit])[v] = zero > sum ? zero : sum;  // NaN stays
  });
  Vector direction[N] = {}, magnitude[N] = {};
  layer<N>(HIDDEN, theta.w1, hidden, nullptr, theta.b1, [&](int unit, int v, const Vector& sum) {
    const Vector rectified = zero > sum ? zero : sum;
    direction[v] += theta.w2[unit][0] * rectified;
    magnitude[v] += theta.w2[unit][1] * rectified;
  });
  alignas(64) float along[N * LANES], size[N * LANES];
  std::memcpy(along, direction, sizeof along);
  std::memcpy(size, magnitude, sizeof size);
  for (int i = 0; i < N * LANES; ++i)
    moves[i] = (along[i] + theta.b2[0]) * exponential(0.001f * (size[i] + theta.b2[1]));
}

// The first layer's weights with the scales of the features: own, line (or vector), place.
void folded(const Task& task, float (*weight)[HIDDEN]) {
  const int* line = task.t.row_is_line ? ROW_FEATURES : COLUMN_FEATURES;
  const int* place = task.t.row_is_line ? COLUMN_FEATURES : ROW_FEATURES;
  auto add = [&](float* row, int feature) {
    for (int j = 0; j < HIDDEN; ++j) row[j] += task.w.scale[feature] * task.step.theta->w0[feature][j];
  };
  for (int n = 0; n < OWN; ++n) add(weight[n], OWN_FEATURES[n]);
  for (int n = 0; n < SHARED; ++n) {
    add(weight[OWN + n], line[n]);
    add(weight[OWN + (task.w.kind == VECTOR ? 0 : SHARED) + n], place[n]);  // of a vector they are one
  }
}

// What the places of a piece with long lines add to the first layer, and the constant.
void place_shares(const Task& task, const float (*weight)[HIDDEN], Layer* shares) {
  const Statistics& place = task.w.place;
  const int64_t origin = (task.piece.a * task.t.b + task.piece.b) * task.t.length() + task.piece.place;
  alignas(64) float in[SHARED][BLOCK] = {};
  for (int64_t l = 0; l < task.piece.places; l += BLOCK) {
    const int64_t count = least(BLOCK, task.piece.places - l);
    for (int k = 0; k < 3; ++k) {
      std::memcpy(in[k], place.mean + k * place.count + origin + l, count * sizeof(float));
      std::memcpy(in[3 + k], place.root + k * place.count + origin + l, count * sizeof(float));
    }
    float(*share)[BLOCK] = shares[l / BLOCK];
    layer<VECTORS>(SHARED, weight + OWN + SHARED, in, nullptr, task.step.constant,
                   [&](int unit, int v, const Vector& sum) { reinterpret_cast<Vector*>(share[unit])[v] = sum; });
  }
}

// Phase 5: features, network, new parameters.
void move(const Step& step, int64_t index, int64_t number) {
  Task task(step, index, number, false);
  alignas(64) float weight[INPUTS][HIDDEN] = {}, moves[BLOCK] = {}, of_line[HIDDEN];
  alignas(64) Layer shares[MOST_PLACES / BLOCK];
  folded(task, weight);
  const Kind kind = task.w.kind;
  const bool once = kind == LONG && task.t.c == 1;  // a line has one share, which is part of the bias
  const int inputs = kind == SHORT ? INPUTS : once ? OWN : OWN + SHARED;
  if (kind == LONG) place_shares(task, weight, shares);
  int64_t line = -1;
  each_block(task.t, task.piece, [&](const Block& block) {
    read(task, block);
    if (kind == LONG && line != block.line) {
      line = block.line;
      std::memset(of_line, 0, sizeof of_line);
      for (int n = 0; n < SHARED && once; ++n) {
        const float* all = n < 3 ? task.w.line.mean : task.w.line.root;
        const float feature = all[n % 3 * task.w.line.count + line];
        for (int j = 0; j < HIDDEN; ++j) of_line[j] += feature * weight[OWN + n][j];
      }
    }
    const Layer* start = kind == LONG ? &shares[(block.place - task.piece.place) / BLOCK] : nullptr;
    const float* bias = kind == LONG ? of_line : step.constant;
    const int64_t vectors = parts(block.count, LANES);
    (vectors == 1 ? network<1> : vectors == 2 ? network<2> : network<3>)(task, weight, inputs, start, bias, moves);
    float* param = task.in[1];
    for (int i = 0; i < BLOCK; ++i) param[i] = task.w.decay * param[i] - task.w.rate * moves[i];
    store(task.t.param, task.t.param_type, block.first, block.count, param);
  });
}

constexpr Kernels KERNELS = {squares, statistics, moments, move};

}  // namespace ISA
}  // namespace
