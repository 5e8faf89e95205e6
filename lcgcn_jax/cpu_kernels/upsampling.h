// Bilinear upsampling with half-pixel centers, and its gradient, in NHWC and float32.

#ifndef LCGCN_JAX_CPU_KERNELS_UPSAMPLING_H_
#define LCGCN_JAX_CPU_KERNELS_UPSAMPLING_H_

#include "common.h"

namespace lcgcn {

// A sample at a position between two others: (1 - weight) * low + weight * high.
struct Sample {
  int64_t low, high;
  float weight;
};

inline std::vector<Sample> Samples(int64_t size, int64_t positions) {
  std::vector<Sample> samples(positions);
  for (int64_t i = 0; i < positions; ++i) {
    const double at = (i + 0.5) * size / positions - 0.5;
    const double position = std::clamp(at, 0.0, static_cast<double>(size - 1));
    const int64_t low = std::min<int64_t>(position, std::max<int64_t>(size - 2, 0));
    samples[i] = {low, std::min(low + 1, size - 1), static_cast<float>(position - low)};
  }
  return samples;
}

struct UpsamplingShape {
  int64_t images, height, width, channels, out_height, out_width;
};

inline void Upsample(ffi::ThreadPool pool, const UpsamplingShape& s, const float* input,
                     float* output) {
  const std::vector<Sample> rows = Samples(s.height, s.out_height);
  const std::vector<Sample> columns = Samples(s.width, s.out_width);
  const int64_t row = s.width * s.channels;
  ParallelFor::Run(pool, s.images * s.out_height, [&](int64_t item) {
    static thread_local std::vector<float> buffer;
    if (static_cast<int64_t>(buffer.size()) < row) buffer.resize(row);
    float* __restrict__ blended = buffer.data();
    const Sample& y = rows[item % s.out_height];
    const float* image = input + item / s.out_height * s.height * row;
    const float* __restrict__ low_row = image + y.low * row;
    const float* __restrict__ high_row = image + y.high * row;
    for (int64_t i = 0; i < row; ++i)
      blended[i] = (1 - y.weight) * low_row[i] + y.weight * high_row[i];
    for (int64_t x = 0; x < s.out_width; ++x) {
      const Sample& column = columns[x];
      const float* __restrict__ low = blended + column.low * s.channels;
      const float* __restrict__ high = blended + column.high * s.channels;
      float* __restrict__ to = output + (item * s.out_width + x) * s.channels;
      for (int64_t c = 0; c < s.channels; ++c)
        to[c] = (1 - column.weight) * low[c] + column.weight * high[c];
    }
  });
}

inline void UpsampleGradient(ffi::ThreadPool pool, const UpsamplingShape& s, const float* gradient,
                             float* output) {
  const std::vector<Sample> rows = Samples(s.height, s.out_height);
  const std::vector<Sample> columns = Samples(s.width, s.out_width);
  const int64_t row = s.width * s.channels, out_row = s.out_width * s.channels;
  ParallelFor::Run(pool, s.images * s.height, [&](int64_t item) {
    static thread_local std::vector<float> buffer;
    buffer.assign(out_row, 0.0f);
    float* __restrict__ sums = buffer.data();
    const int64_t image = item / s.height, y = item % s.height;
    for (int64_t i = 0; i < s.out_height; ++i) {
      const float weight = (rows[i].low == y ? 1 - rows[i].weight : 0.0f) +
                           (rows[i].high == y ? rows[i].weight : 0.0f);
      if (weight == 0.0f) continue;
      const float* __restrict__ from = gradient + (image * s.out_height + i) * out_row;
      for (int64_t j = 0; j < out_row; ++j) sums[j] += weight * from[j];
    }
    float* to = output + item * row;
    std::fill(to, to + row, 0.0f);
    for (int64_t x = 0; x < s.out_width; ++x) {
      const float* from = sums + x * s.channels;
      float* low = to + columns[x].low * s.channels;
      float* high = to + columns[x].high * s.channels;
      for (int64_t c = 0; c < s.channels; ++c) low[c] += (1 - columns[x].weight) * from[c];
      for (int64_t c = 0; c < s.channels; ++c) high[c] += columns[x].weight * from[c];
    }
  });
}

}  // namespace lcgcn

#endif  // LCGCN_JAX_CPU_KERNELS_UPSAMPLING_H_
