// Batch normalization in training, with optional residual and ReLU, and its gradient, in float32.

#ifndef LCGCN_JAX_CPU_KERNELS_BATCH_NORM_H_
#define LCGCN_JAX_CPU_KERNELS_BATCH_NORM_H_

#include <cmath>

#include "common.h"

namespace lcgcn {

constexpr int64_t kValuesPerItem = 32768;  // values of a work item
constexpr int64_t kMaxParts = 32;

// Calls body(part, start, end) for work items of whole runs of `repeated.size()` values. Each part
// has the same items, in the same order, however many threads are free.
template <typename Body>
void ForEachItem(ffi::ThreadPool pool, const Repeated& repeated, int64_t values, const Body& body) {
  const int64_t item = std::max<int64_t>(kValuesPerItem / repeated.size(), 1) * repeated.size();
  const int64_t items = (values + item - 1) / item;
  const int64_t parts = std::min({NumThreads(pool), items, kMaxParts});
  ParallelFor::Run(pool, parts, [&](int64_t part) {
    for (int64_t i = items * part / parts; i < items * (part + 1) / parts; ++i)
      body(part, i * item, std::min((i + 1) * item, values));
  });
}

// Calls body(start, count) for each run.
template <typename Body>
void ForEachRun(ffi::ThreadPool pool, const Repeated& repeated, int64_t values, const Body& body) {
  ForEachItem(pool, repeated, values, [&](int64_t, int64_t start, int64_t end) {
    for (; start < end; start += repeated.size())
      body(start, std::min(repeated.size(), end - start));
  });
}

// Sums of two terms over all pixels, per channel: terms(start, count, first, second) adds to
// `count` values. The sums of an item are in float32, those of all items in float64.
struct Sums {
  std::vector<double> first, second;

  template <typename Terms>
  Sums(ffi::ThreadPool pool, int64_t channels, const Repeated& repeated, int64_t values,
       const Terms& terms)
      : first(channels), second(channels) {
    std::vector<double> a(kMaxParts * channels), b(kMaxParts * channels);
    ForEachItem(pool, repeated, values, [&](int64_t part, int64_t start, int64_t end) {
      static thread_local std::vector<float> buffer;
      const int64_t size = repeated.size();
      buffer.assign(2 * size, 0.0f);
      for (; start < end; start += size)
        terms(start, std::min(size, end - start), buffer.data(), buffer.data() + size);
      for (int64_t i = 0; i < size; ++i) {
        a[part * channels + i % channels] += buffer[i];
        b[part * channels + i % channels] += buffer[size + i];
      }
    });
    for (int64_t i = 0; i < kMaxParts * channels; ++i) {
      first[i % channels] += a[i];
      second[i % channels] += b[i];
    }
  }
};

// `shift` is near the mean, so that the variance is a difference of small numbers. `residual` may
// be null.
inline void BatchNormalize(ffi::ThreadPool pool, int64_t values, int64_t channels, const float* x,
                           const float* scale, const float* bias, const float* shift,
                           const float* residual, float epsilon, bool relu, float* y, float* mean,
                           float* variance) {
  const Repeated repeated(channels);
  const std::vector<float> centers = repeated(shift);
  const Sums sums(
      pool, channels, repeated, values,
      [&](int64_t start, int64_t count, float* __restrict__ first, float* __restrict__ second) {
        const float* __restrict__ in = x + start;
        for (int64_t i = 0; i < count; ++i) {
          const float difference = in[i] - centers[i];
          first[i] += difference;
          second[i] += difference * difference;
        }
      });
  const double pixels = static_cast<double>(values) / channels;
  std::vector<float> factor(channels), offset(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double m = sums.first[c] / pixels;
    const double v = std::max(sums.second[c] / pixels - m * m, 0.0);
    mean[c] = static_cast<float>(m + shift[c]);
    variance[c] = static_cast<float>(v);
    factor[c] = static_cast<float>(scale[c] / std::sqrt(v + epsilon));
    offset[c] = bias[c] - mean[c] * factor[c];
  }
  const std::vector<float> factors = repeated(factor.data()), offsets = repeated(offset.data());
  ForEachRun(pool, repeated, values, [&](int64_t start, int64_t count) {
    const float* __restrict__ in = x + start;
    float* __restrict__ out = y + start;
    if (residual) {
      const float* __restrict__ added = residual + start;
      for (int64_t i = 0; i < count; ++i) out[i] = in[i] * factors[i] + offsets[i] + added[i];
    } else {
      for (int64_t i = 0; i < count; ++i) out[i] = in[i] * factors[i] + offsets[i];
    }
    if (relu)
      for (int64_t i = 0; i < count; ++i) out[i] = Relu(out[i]);
  });
}

// `residual_gradient` may be null.
inline void BatchNormGradient(ffi::ThreadPool pool, int64_t values, int64_t channels,
                              const float* x, const float* y, const float* dy, const float* scale,
                              const float* mean, const float* variance, float epsilon, bool relu,
                              float* dx, float* scale_gradient, float* bias_gradient,
                              float* residual_gradient) {
  const Repeated repeated(channels);
  const std::vector<float> centers = repeated(mean);
  const Sums sums(
      pool, channels, repeated, values,
      [&](int64_t start, int64_t count, float* __restrict__ first, float* __restrict__ second) {
        const float* __restrict__ in = x + start;
        const float* __restrict__ out = y + start;
        const float* __restrict__ g = dy + start;
        for (int64_t i = 0; i < count; ++i) {
          const float masked = !relu || out[i] > 0.0f ? g[i] : 0.0f;
          first[i] += masked;
          second[i] += masked * (in[i] - centers[i]);
        }
      });
  // dx = factor * masked + slope * (x - mean) + constant
  const double pixels = static_cast<double>(values) / channels;
  std::vector<float> factor(channels), slope(channels), constant(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = 1 / std::sqrt(variance[c] + epsilon);
    const double f = scale[c] * inverse;
    scale_gradient[c] = static_cast<float>(sums.second[c] * inverse);
    bias_gradient[c] = static_cast<float>(sums.first[c]);
    factor[c] = static_cast<float>(f);
    slope[c] = static_cast<float>(-f * inverse * inverse * sums.second[c] / pixels);
    constant[c] = static_cast<float>(-f * sums.first[c] / pixels);
  }
  const std::vector<float> factors = repeated(factor.data()), slopes = repeated(slope.data()),
                           constants = repeated(constant.data());
  ForEachRun(pool, repeated, values, [&](int64_t start, int64_t count) {
    const float* __restrict__ in = x + start;
    const float* __restrict__ out = y + start;
    const float* __restrict__ g = dy + start;
    float* __restrict__ to = dx + start;
    for (int64_t i = 0; i < count; ++i) {
      const float masked = !relu || out[i] > 0.0f ? g[i] : 0.0f;
      to[i] = masked * factors[i] + (in[i] - centers[i]) * slopes[i] + constants[i];
    }
    if (residual_gradient) {
      float* __restrict__ added = residual_gradient + start;
      for (int64_t i = 0; i < count; ++i) added[i] = !relu || out[i] > 0.0f ? g[i] : 0.0f;
    }
  });
}

}  // namespace lcgcn

#endif  // LCGCN_JAX_CPU_KERNELS_BATCH_NORM_H_
