// What only a GPU has: its instructions, and the launch of a kernel. The tests run the kernels on a CPU, where a header
// of theirs stands for this one.

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

// max(0, x), but not more than the largest float16; NaN stays NaN.
__device__ float rectified(float x) {
  asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(x));
  asm("min.NaN.f32 %0, %0, 0f477fe000;" : "+f"(x));
  return x;
}

// The same of two values, rounded.
__device__ uint32_t to_rectified_float16(float first, float second) {
  uint32_t bits;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  asm("min.NaN.f16x2 %0, %0, %1;" : "+r"(bits) : "r"(0x7bff7bff));
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

// Has the driver load a kernel now. The first launch would do so, but must not while a graph is captured.
template <class Argument>
int preload(void (*kernel)(Argument)) {
  cudaFuncAttributes unused;
  return cudaFuncGetAttributes(&unused, reinterpret_cast<const void*>(kernel));
}

const char* description(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Makes a device the current one, as it is for torch already, and says how many multiprocessors it has.
int use(int device, int* multiprocessors) {
  const int failed = cudaSetDevice(device);
  return failed ? failed : cudaDeviceGetAttribute(multiprocessors, cudaDevAttrMultiProcessorCount, device);
}

}  // namespace
