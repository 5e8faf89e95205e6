// Convolutions with padding size / 2 and the gradients of their kernels, in NHWC and float32.

#ifndef LCGCN_JAX_CPU_KERNELS_CONVOLUTION_H_
#define LCGCN_JAX_CPU_KERNELS_CONVOLUTION_H_

#include "common.h"

namespace lcgcn {

struct ConvolutionShape {
  int64_t images, height, width, inputs;
  int64_t out_height, out_width, outputs;
  int64_t stride, size;
};

// `vectors` vectors of output channels of `pixels` pixels of one row. The kernel is [size][size *
// inputs] rows of `kernel_row` values; `input_row` and `input_pixel` are the distances between rows
// and output pixels.
struct TileArguments {
  const float* input;
  int64_t input_row, input_pixel, size, length;
  const float* kernel;
  int64_t kernel_row;
  float* output;
  int64_t outputs, channels;
  const float *bias, *residual;  // added to the output if not null
  bool relu;
};

template <int kPixels, int kVectors>
void Tile(const TileArguments& a) {
  Vector sums[kPixels][kVectors] = {};
  const float* kernel = a.kernel;
  for (int64_t y = 0; y < a.size; ++y) {
    // Two pointers: one would need more registers for the offsets of the pixels than there are.
    const float* first_half = a.input + y * a.input_row;
    const float* second_half = first_half + kPixels / 2 * a.input_pixel;
    for (int64_t i = 0; i < a.length; ++i, ++first_half, ++second_half, kernel += a.kernel_row) {
      Vector factors[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) factors[v] = Load(kernel + v * kLanes);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const float value = p < kPixels / 2 ? first_half[p * a.input_pixel]
                                            : second_half[(p - kPixels / 2) * a.input_pixel];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[p][v] += value * factors[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t channels = std::min<int64_t>(a.channels - v * kLanes, kLanes);
      if (channels <= 0) break;
      const int64_t at = p * a.outputs + v * kLanes;
      Vector values = sums[p][v];
      if (a.bias) values += Load(a.bias + v * kLanes);
      if (a.residual) {
        Vector residual = {};
        if (channels == kLanes) {
          residual = Load(a.residual + at);
        } else {
          std::memcpy(&residual, a.residual + at, channels * sizeof(float));
        }
        values += residual;
      }
      if (a.relu) values = Relu(values);
      if (channels == kLanes) {
        Store(a.output + at, values);
      } else {
        std::memcpy(a.output + at, &values, channels * sizeof(float));
      }
    }
  }
}

// The same for few output channels: sums over vectors of input channels. The kernel is
// [channels][size][kernel_row].
template <int kPixels, int kChannels>
void NarrowTile(const TileArguments& a) {
  Vector sums[kPixels][kChannels] = {};
  for (int64_t y = 0; y < a.size; ++y) {
    for (int64_t i = 0; i < a.length; i += kLanes) {
      Vector values[kPixels];
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p)
        values[p] = Load(a.input + y * a.input_row + p * a.input_pixel + i);
      // The next pixel follows; 0 times its values is not 0 if they are not finite.
      if (i + kLanes > a.length)
#pragma GCC unroll 8
        for (int p = 0; p < kPixels; ++p) values[p] = FirstLanes(values[p], a.length - i);
#pragma GCC unroll 4
      for (int c = 0; c < kChannels; ++c) {
        const Vector factor = Load(a.kernel + (c * a.size + y) * a.kernel_row + i);
#pragma GCC unroll 8
        for (int p = 0; p < kPixels; ++p) sums[p][c] += values[p] * factor;
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      float value = SumOfLanes(sums[p][c]);
      if (a.bias) value += a.bias[c];
      if (a.residual) value += a.residual[p * a.outputs + c];
      a.output[p * a.outputs + c] = a.relu ? Relu(value) : value;
    }
}

struct TileKind {
  int64_t pixels, width;  // width: vectors of channels, or channels of a narrow tile
  void (*compute)(const TileArguments&);
};

template <int kPixels, int kVectors>
constexpr TileKind MakeTile() {
  if constexpr (kPixels * kVectors <= kMaxAccumulators)
    return {kPixels, kVectors, &Tile<kPixels, kVectors>};
  return {kPixels, kVectors, nullptr};
}

constexpr TileKind kTiles[] = {
    MakeTile<16, 1>(), MakeTile<8, 1>(), MakeTile<6, 1>(), MakeTile<4, 1>(), MakeTile<1, 1>(),
    MakeTile<8, 2>(),  MakeTile<6, 2>(), MakeTile<4, 2>(), MakeTile<1, 2>(), MakeTile<8, 3>(),
    MakeTile<6, 3>(),  MakeTile<4, 3>(), MakeTile<1, 3>(),
};
constexpr int64_t kMaxVectors = 3;

constexpr TileKind kNarrowTiles[] = {
    {2, 4, &NarrowTile<2, 4>}, {1, 4, &NarrowTile<1, 4>}, {4, 2, &NarrowTile<4, 2>},
    {1, 2, &NarrowTile<1, 2>}, {8, 1, &NarrowTile<8, 1>}, {1, 1, &NarrowTile<1, 1>},
};

// The tiles of a row overlap where its width is not a multiple, so the one with the least work is
// best.
inline const TileKind& ChooseTile(int64_t vectors, int64_t width) {
  const TileKind* best = nullptr;
  int64_t best_work = 0;
  for (const TileKind& tile : kTiles) {
    if (tile.width != vectors || tile.pixels > width || !tile.compute) continue;
    // Loading the kernel takes about as long as one pixel.
    const int64_t work = (width + tile.pixels - 1) / tile.pixels * (tile.pixels + 1);
    if (!best || work < best_work) best = &tile, best_work = work;
  }
  return *best;
}

inline const TileKind& ChooseNarrowTile(int64_t channels, int64_t width) {
  const TileKind* tile = kNarrowTiles;
  while (tile->width > channels || tile->pixels > width) ++tile;
  return *tile;
}

// Copies input rows [first, first + count) with zeros around the image. Vectors are read beyond the
// last row.
inline const float* CopyRows(const ConvolutionShape& s, const float* image, int64_t first,
                             int64_t count, std::vector<float>& buffer) {
  const int64_t margin = s.size / 2 * s.inputs, row = s.width * s.inputs + 2 * margin;
  const size_t values = count * row + kLanes;
  if (buffer.size() < values) buffer.resize(values);
  for (int64_t r = 0; r < count; ++r) {
    float* to = &buffer[r * row];
    const int64_t y = first + r;
    if (y < 0 || y >= s.height) {
      std::fill(to, to + row, 0.0f);
      continue;
    }
    std::fill(to, to + margin, 0.0f);
    std::memcpy(to + margin, image + y * s.width * s.inputs, s.width * s.inputs * sizeof(float));
    std::fill(to + row - margin, to + row, 0.0f);
  }
  std::fill(&buffer[count * row], &buffer[count * row] + kLanes, 0.0f);
  return buffer.data();
}

inline void Convolve(ffi::ThreadPool pool, const ConvolutionShape& s, const float* input,
                     const float* kernel, const float* bias_values, const float* residual,
                     bool relu, float* output) {
  if (s.images * s.out_height * s.out_width * s.outputs == 0) return;
  const int64_t length = s.size * s.inputs;
  // Channels beyond the last whole vector are computed by narrow tiles if they are few, else in a
  // padded vector.
  int64_t vectors = s.outputs / kLanes, narrow = s.outputs % kLanes;
  if (narrow > kLanes / 2 || length < 2 * kLanes) {
    vectors += narrow > 0;
    narrow = 0;
  }
  std::vector<float> padded_kernel;
  const float* narrow_source = kernel + vectors * kLanes;
  int64_t kernel_row = s.outputs;
  if (vectors * kLanes > s.outputs) {
    kernel_row = vectors * kLanes;
    padded_kernel.resize(s.size * length * kernel_row);
    for (int64_t i = 0; i < s.size * length; ++i)
      std::memcpy(&padded_kernel[i * kernel_row], kernel + i * s.outputs,
                  s.outputs * sizeof(float));
    kernel = padded_kernel.data();
  }
  std::vector<float> bias;
  if (bias_values) {
    bias.assign(bias_values, bias_values + s.outputs);
    bias.resize(s.outputs + kLanes);  // vectors are read beyond the last channel
  }
  const int64_t padded_length = (length + kLanes - 1) / kLanes * kLanes;
  std::vector<float> narrow_kernel(narrow * s.size * padded_length);
  for (int64_t c = 0; c < narrow; ++c)
    for (int64_t y = 0; y < s.size; ++y)
      for (int64_t i = 0; i < length; ++i)
        narrow_kernel[(c * s.size + y) * padded_length + i] =
            narrow_source[(y * length + i) * s.outputs + c];

  const int64_t blocks = (vectors + kMaxVectors - 1) / kMaxVectors;
  const int64_t block = blocks ? (vectors + blocks - 1) / blocks : 1;
  const int64_t row = (s.width + s.size / 2 * 2) * s.inputs;
  // The rows of a work item fit the first-level cache, and each thread has the same number of
  // items.
  const int64_t most = std::clamp<int64_t>(12288 / std::max<int64_t>(row, 1), 1, s.out_height);
  const int64_t threads = s.images % NumThreads(pool) == 0 ? 1 : NumThreads(pool);
  const int64_t parts = ((s.out_height + most - 1) / most + threads - 1) / threads * threads;
  const int64_t rows = (s.out_height + parts - 1) / parts;
  const int64_t groups = (s.out_height + rows - 1) / rows;
  ParallelFor::Run(pool, s.images * groups, [&](int64_t item) {
    const int64_t image = item / groups, first = item % groups * rows;
    const int64_t last = std::min(first + rows, s.out_height);
    static thread_local std::vector<float> buffer;
    const float* copy =
        CopyRows(s, input + image * s.height * s.width * s.inputs, first * s.stride - s.size / 2,
                 (last - first - 1) * s.stride + s.size, buffer);
    const auto compute_rows = [&](const TileKind& tile, TileArguments a, int64_t channel) {
      a.bias = bias.empty() ? nullptr : &bias[channel];
      for (int64_t y = first; y < last; ++y) {
        for (int64_t x = 0; x < s.out_width; x += tile.pixels) {
          const int64_t start = std::min(x, s.out_width - tile.pixels);
          a.input = copy + (y - first) * s.stride * row + start * a.input_pixel;
          const int64_t pixel = (image * s.out_height + y) * s.out_width + start;
          a.output = output + pixel * s.outputs + channel;
          a.residual = residual ? residual + pixel * s.outputs + channel : nullptr;
          tile.compute(a);
        }
      }
    };
    TileArguments a = {};
    a.input_row = row;
    a.input_pixel = s.stride * s.inputs;
    a.size = s.size;
    a.length = length;
    a.kernel_row = kernel_row;
    a.outputs = s.outputs;
    a.relu = relu;
    for (int64_t v = 0; v < vectors; v += block) {
      const TileKind& tile = ChooseTile(std::min(block, vectors - v), s.out_width);
      a.kernel = kernel + v * kLanes;
      a.channels = s.outputs - v * kLanes;
      compute_rows(tile, a, v * kLanes);
    }
    a.kernel_row = padded_length;
    for (int64_t c = 0; c < narrow;) {
      const TileKind& tile = ChooseNarrowTile(narrow - c, s.out_width);
      a.kernel = &narrow_kernel[c * s.size * padded_length];
      compute_rows(tile, a, vectors * kLanes + c);
      c += tile.width;
    }
  });
}

// Adds the products of input channels and vectors of gradient channels over a rectangle of pixels
// to [inputs][row].
struct GradientTileArguments {
  const float* input;
  int64_t input_row, input_pixel;
  const float* gradient;
  int64_t gradient_row, gradient_pixel, rows, pixels;
  float* sums;
  int64_t sums_row;
};

template <int kInputs, int kVectors>
void GradientTile(const GradientTileArguments& a) {
  Vector sums[kInputs][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kInputs; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = Load(a.sums + i * a.sums_row + v * kLanes);
  for (int64_t y = 0; y < a.rows; ++y) {
    const float* input = a.input + y * a.input_row;
    const float* gradient = a.gradient + y * a.gradient_row;
    for (int64_t x = 0; x < a.pixels; ++x, input += a.input_pixel, gradient += a.gradient_pixel) {
      Vector factors[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) factors[v] = Load(gradient + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kInputs; ++i) {
        const float value = input[i];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[i][v] += value * factors[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kInputs; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) Store(a.sums + i * a.sums_row + v * kLanes, sums[i][v]);
}

struct GradientTileKind {
  int64_t inputs, vectors;
  void (*compute)(const GradientTileArguments&);
};

template <int kInputs, int kVectors>
constexpr GradientTileKind MakeGradientTile() {
  if constexpr (kInputs * kVectors <= kMaxAccumulators)
    return {kInputs, kVectors, &GradientTile<kInputs, kVectors>};
  return {kInputs, kVectors, nullptr};
}

// The first that divides the number of inputs is used, else the first that is not larger.
constexpr GradientTileKind kGradientTiles[] = {
    MakeGradientTile<12, 1>(), MakeGradientTile<9, 1>(), MakeGradientTile<8, 1>(),
    MakeGradientTile<6, 1>(),  MakeGradientTile<4, 1>(), MakeGradientTile<1, 1>(),  //
    MakeGradientTile<12, 2>(), MakeGradientTile<9, 2>(), MakeGradientTile<8, 2>(),
    MakeGradientTile<6, 2>(),  MakeGradientTile<4, 2>(), MakeGradientTile<1, 2>(),  //
    MakeGradientTile<8, 3>(),  MakeGradientTile<6, 3>(), MakeGradientTile<4, 3>(),
    MakeGradientTile<1, 3>(),
};

inline const GradientTileKind& ChooseGradientTile(int64_t inputs, int64_t vectors) {
  const GradientTileKind* largest = nullptr;
  for (const GradientTileKind& tile : kGradientTiles) {
    if (tile.vectors != vectors || tile.inputs > inputs || !tile.compute) continue;
    if (inputs % tile.inputs == 0 && tile.inputs > 1) return tile;
    if (!largest) largest = &tile;
  }
  return *largest;
}

// Output positions whose input position is inside the image.
struct Range {
  int64_t begin, end;
};

inline Range ClipToImage(Range range, int64_t stride, int64_t offset, int64_t size) {
  while (range.begin < range.end && range.begin * stride + offset < 0) ++range.begin;
  while (range.end > range.begin && (range.end - 1) * stride + offset >= size) --range.end;
  return range;
}

constexpr int64_t kMaxPartialSums = 8;

inline void KernelGradient(ffi::ThreadPool pool, const ConvolutionShape& s, const float* input,
                           const float* gradient, float* output) {
  const int64_t vectors = (s.outputs + kLanes - 1) / kLanes, padded = vectors * kLanes;
  const int64_t count = s.size * s.size * s.inputs, pad = s.size / 2;
  if (s.images * s.out_height * s.out_width * s.outputs * s.inputs == 0) {
    std::fill(output, output + count * s.outputs, 0.0f);
    return;
  }
  const int64_t blocks = (vectors + kMaxVectors - 1) / kMaxVectors;
  const int64_t block = (vectors + blocks - 1) / blocks;
  // The rows of a work item fit the first-level cache. Each part sums up its items, so that the
  // result does not depend on the order in which the threads run. With more threads than parts, the
  // rows of the kernel are split too.
  const int64_t rows =
      std::clamp<int64_t>(16384 / (s.out_width * (s.inputs * s.stride + padded)), 1, s.out_height);
  const int64_t groups = (s.out_height + rows - 1) / rows, items = s.images * groups;
  const int64_t parts = std::clamp<int64_t>(items, 1, std::min(NumThreads(pool), kMaxPartialSums));
  const int64_t splits = NumThreads(pool) > parts ? s.size : 1;
  std::vector<float> sums(parts * count * padded);
  ParallelFor::Run(pool, parts * splits, [&](int64_t job) {
    const int64_t part = job / splits, split = job % splits;
    static thread_local std::vector<float> buffer;
    for (int64_t item = items * part / parts; item < items * (part + 1) / parts; ++item) {
      const int64_t image = item / groups, first = item % groups * rows;
      const int64_t last = std::min(first + rows, s.out_height);
      const float* factors = gradient + (image * s.out_height + first) * s.out_width * s.outputs;
      if (padded > s.outputs) {
        const int64_t pixels = (last - first) * s.out_width;
        if (static_cast<int64_t>(buffer.size()) < pixels * padded) buffer.resize(pixels * padded);
        for (int64_t p = 0; p < pixels; ++p)
          std::memcpy(&buffer[p * padded], factors + p * s.outputs, s.outputs * sizeof(float));
        factors = buffer.data();
      }
      for (int64_t ky = split * s.size / splits; ky < (split + 1) * s.size / splits; ++ky) {
        const Range ys = ClipToImage({first, last}, s.stride, ky - pad, s.height);
        for (int64_t kx = 0; kx < s.size; ++kx) {
          const Range xs = ClipToImage({0, s.out_width}, s.stride, kx - pad, s.width);
          if (ys.begin == ys.end || xs.begin == xs.end) continue;
          const int64_t pixel = (image * s.height + ys.begin * s.stride + ky - pad) * s.width;
          GradientTileArguments a = {
              input + (pixel + xs.begin * s.stride + kx - pad) * s.inputs,
              s.stride * s.width * s.inputs,
              s.stride * s.inputs,
              factors + ((ys.begin - first) * s.out_width + xs.begin) * padded,
              s.out_width * padded,
              padded,
              ys.end - ys.begin,
              xs.end - xs.begin,
              &sums[(part * count + (ky * s.size + kx) * s.inputs) * padded],
              padded};
          for (int64_t v = 0; v < vectors; v += block) {
            GradientTileArguments channels = a;
            channels.gradient += v * kLanes;
            channels.sums += v * kLanes;
            for (int64_t i = 0; i < s.inputs;) {
              const GradientTileKind& tile =
                  ChooseGradientTile(s.inputs - i, std::min(block, vectors - v));
              tile.compute(channels);
              channels.input += tile.inputs;
              channels.sums += tile.inputs * padded;
              i += tile.inputs;
            }
          }
        }
      }
    }
  });
  ParallelFor::Run(pool, s.size * s.size, [&](int64_t position) {
    for (int64_t i = position * s.inputs; i < (position + 1) * s.inputs; ++i) {
      float* to = output + i * s.outputs;
      std::memcpy(to, &sums[i * padded], s.outputs * sizeof(float));
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t c = 0; c < s.outputs; ++c) to[c] += sums[(part * count + i) * padded + c];
    }
  });
}

}  // namespace lcgcn

#endif  // LCGCN_JAX_CPU_KERNELS_CONVOLUTION_H_
