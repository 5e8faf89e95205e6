// Vectors and parallel loops of the kernels.

#ifndef LCGCN_JAX_CPU_KERNELS_COMMON_H_
#define LCGCN_JAX_CPU_KERNELS_COMMON_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace lcgcn {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kMaxAccumulators = 24;  // of 32 vector registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kMaxAccumulators = 12;  // of 16
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kMaxAccumulators = 24;  // of 32
#else
constexpr int kLanes = 4;
constexpr int kMaxAccumulators = 12;  // of 16
#endif

// Vector of floats at any address.
typedef float Vector
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector values) { *reinterpret_cast<Vector*>(to) = values; }

// The first `count` lanes, and 0 in the others.
inline Vector FirstLanes(Vector values, int64_t count) {
  typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));
  Integers lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes < static_cast<int32_t>(count) ? values : Vector{};
}

// ReLU that keeps NaN.
inline Vector Relu(Vector values) { return values < 0.0f ? Vector{} : values; }
inline float Relu(float value) { return value < 0.0f ? 0.0f : value; }

// Sum of the lanes.
inline float SumOfLanes(Vector values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(values));
#else
  float lanes[kLanes];
  std::memcpy(lanes, &values, sizeof(values));
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

// Values per channel, repeated for the smallest power of two of pixels that fills whole vectors.
class Repeated {
 public:
  explicit Repeated(int64_t channels) : channels_(channels), size_(channels) {
    while (size_ % kLanes != 0) size_ *= 2;
  }
  int64_t size() const { return size_; }
  std::vector<float> operator()(const float* values) const {
    std::vector<float> repeated(size_);
    for (int64_t i = 0; i < size_; ++i) repeated[i] = values[i % channels_];
    return repeated;
  }

 private:
  int64_t channels_, size_;
};

// Number of threads of XLA, at least 1.
inline int64_t NumThreads(ffi::ThreadPool pool) { return std::max<int64_t>(pool.num_threads(), 1); }

// Calls body(0) to body(count - 1) in the threads of XLA and in this one.
class ParallelFor {
 public:
  static void Run(ffi::ThreadPool pool, int64_t count, std::function<void(int64_t)> body) {
    auto loop = std::make_shared<ParallelFor>(count, std::move(body));
    const int64_t helpers = std::min(NumThreads(pool), count) - 1;
    for (int64_t i = 0; i < helpers; ++i) pool.Schedule([loop] { loop->Work(); });
    loop->Work();
    std::unique_lock<std::mutex> lock(loop->mutex_);
    loop->finished_.wait(lock, [&] { return loop->done_ == loop->count_; });
  }

  ParallelFor(int64_t count, std::function<void(int64_t)> body)
      : count_(count), body_(std::move(body)) {}

 private:
  // A helper that starts late has no items left, so this thread never waits for a free one.
  void Work() {
    int64_t done = 0;
    for (int64_t i; (i = next_++) < count_; ++done) body_(i);
    std::lock_guard<std::mutex> lock(mutex_);
    done_ += done;
    if (done_ == count_) finished_.notify_one();
  }

  const int64_t count_;
  const std::function<void(int64_t)> body_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  int64_t done_ = 0;
};

}  // namespace lcgcn

#endif  // LCGCN_JAX_CPU_KERNELS_COMMON_H_
