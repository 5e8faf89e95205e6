// The kernels as custom calls of XLA: https://docs.jax.dev/en/latest/ffi.html

#include "batch_norm.h"
#include "common.h"
#include "convolution.h"
#include "upsampling.h"

namespace lcgcn {
namespace {

using Array = ffi::Buffer<ffi::F32, 4>;
using Channels = ffi::Buffer<ffi::F32, 1>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;
using ChannelsResult = ffi::ResultBuffer<ffi::F32, 1>;
using Dimensions = Array::Dimensions;

ffi::Error CheckShapes(bool are_consistent) {
  if (are_consistent) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("lcgcn_jax: the shapes of the arrays do not fit together");
}

bool FitTogether(Dimensions input, Dimensions output, Dimensions kernel, int64_t stride) {
  if (stride <= 0) return false;
  const int64_t size = kernel[0];
  bool fit = size % 2 == 1 && kernel[1] == size && kernel[2] == input[3] && kernel[3] == output[3];
  for (int axis : {1, 2}) fit &= output[axis] == (input[axis] + stride - 1) / stride;
  return fit && input[0] == output[0];
}

ConvolutionShape ShapeOf(Dimensions input, Dimensions output, Dimensions kernel, int64_t stride) {
  return {input[0],  input[1],  input[2], input[3], output[1],
          output[2], output[3], stride,   kernel[0]};
}

// The other arguments are the bias, if any, and the residual, if any.
ffi::Error CallConvolution(ffi::ThreadPool pool, Array input, Array kernel,
                           ffi::RemainingArgs others, int64_t stride, bool relu, Result output) {
  const float *bias = nullptr, *residual = nullptr;
  for (size_t i = 0; i < others.size(); ++i) {
    if (auto channels = others.get<Channels>(i); channels.has_value()) {
      auto error = CheckShapes(channels->dimensions()[0] == output->dimensions()[3]);
      if (error.failure()) return error;
      bias = channels->typed_data();
    } else if (auto array = others.get<Array>(i); array.has_value()) {
      auto error = CheckShapes(array->dimensions() == output->dimensions());
      if (error.failure()) return error;
      residual = array->typed_data();
    } else {
      return array.error();
    }
  }
  bool fit = FitTogether(input.dimensions(), output->dimensions(), kernel.dimensions(), stride);
  if (auto error = CheckShapes(fit); error.failure()) return error;
  Convolve(pool, ShapeOf(input.dimensions(), output->dimensions(), kernel.dimensions(), stride),
           input.typed_data(), kernel.typed_data(), bias, residual, relu, output->typed_data());
  return ffi::Error::Success();
}

ffi::Error CallKernelGradient(ffi::ThreadPool pool, Array input, Array gradient, int64_t stride,
                              Result output) {
  bool fit = FitTogether(input.dimensions(), gradient.dimensions(), output->dimensions(), stride);
  if (auto error = CheckShapes(fit); error.failure()) return error;
  KernelGradient(pool,
                 ShapeOf(input.dimensions(), gradient.dimensions(), output->dimensions(), stride),
                 input.typed_data(), gradient.typed_data(), output->typed_data());
  return ffi::Error::Success();
}

// The other argument, if any, is the residual.
ffi::Error CallBatchNorm(ffi::ThreadPool pool, Array input, Channels scale, Channels bias,
                         Channels shift, ffi::RemainingArgs others, float epsilon, bool relu,
                         Result output, ChannelsResult mean, ChannelsResult variance) {
  const float* residual = nullptr;
  if (others.size() > 0) {
    auto array = others.get<Array>(0);
    if (!array.has_value()) return array.error();
    auto error = CheckShapes(array->dimensions() == output->dimensions());
    if (error.failure()) return error;
    residual = array->typed_data();
  }
  const int64_t channels = input.dimensions()[3];
  bool fit = output->dimensions() == input.dimensions() && channels > 0;
  for (auto array : {scale, bias, shift, *mean, *variance})
    fit &= array.dimensions()[0] == channels;
  if (auto error = CheckShapes(fit); error.failure()) return error;
  BatchNormalize(pool, input.element_count(), channels, input.typed_data(), scale.typed_data(),
                 bias.typed_data(), shift.typed_data(), residual, epsilon, relu,
                 output->typed_data(), mean->typed_data(), variance->typed_data());
  return ffi::Error::Success();
}

// The other result, if any, is the gradient of the residual.
ffi::Error CallBatchNormGradient(ffi::ThreadPool pool, Array input, Array output, Array gradient,
                                 Channels scale, Channels mean, Channels variance, float epsilon,
                                 bool relu, Result input_gradient, ChannelsResult scale_gradient,
                                 ChannelsResult bias_gradient, ffi::RemainingRets others) {
  float* residual_gradient = nullptr;
  if (others.size() > 0) {
    auto array = others.get<Array>(0);
    if (!array.has_value()) return array.error();
    auto error = CheckShapes((*array)->dimensions() == input.dimensions());
    if (error.failure()) return error;
    residual_gradient = (*array)->typed_data();
  }
  const int64_t channels = input.dimensions()[3];
  bool fit = channels > 0;
  for (auto array : {output, gradient, *input_gradient})
    fit &= array.dimensions() == input.dimensions();
  for (auto array : {scale, mean, variance, *scale_gradient, *bias_gradient})
    fit &= array.dimensions()[0] == channels;
  if (auto error = CheckShapes(fit); error.failure()) return error;
  BatchNormGradient(pool, input.element_count(), channels, input.typed_data(), output.typed_data(),
                    gradient.typed_data(), scale.typed_data(), mean.typed_data(),
                    variance.typed_data(), epsilon, relu, input_gradient->typed_data(),
                    scale_gradient->typed_data(), bias_gradient->typed_data(), residual_gradient);
  return ffi::Error::Success();
}

bool HaveSameImagesAndChannels(Dimensions a, Dimensions b) {
  return a[0] == b[0] && a[3] == b[3] && a[1] * a[2] > 0;
}

UpsamplingShape ShapeOf(Dimensions input, Dimensions output) {
  return {input[0], input[1], input[2], input[3], output[1], output[2]};
}

ffi::Error CallUpsampling(ffi::ThreadPool pool, Array input, Result output) {
  bool fit = HaveSameImagesAndChannels(input.dimensions(), output->dimensions());
  if (auto error = CheckShapes(fit); error.failure()) return error;
  Upsample(pool, ShapeOf(input.dimensions(), output->dimensions()), input.typed_data(),
           output->typed_data());
  return ffi::Error::Success();
}

ffi::Error CallUpsamplingGradient(ffi::ThreadPool pool, Array gradient, Result input_gradient) {
  bool fit = HaveSameImagesAndChannels(input_gradient->dimensions(), gradient.dimensions());
  if (auto error = CheckShapes(fit); error.failure()) return error;
  UpsampleGradient(pool, ShapeOf(input_gradient->dimensions(), gradient.dimensions()),
                   gradient.typed_data(), input_gradient->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace lcgcn

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnConvolution, lcgcn::CallConvolution,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<lcgcn::Array>()
                                  .Arg<lcgcn::Array>()
                                  .RemainingArgs()
                                  .Attr<int64_t>("stride")
                                  .Attr<bool>("relu")
                                  .Ret<lcgcn::Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnKernelGradient, lcgcn::CallKernelGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<lcgcn::Array>()
                                  .Arg<lcgcn::Array>()
                                  .Attr<int64_t>("stride")
                                  .Ret<lcgcn::Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnBatchNorm, lcgcn::CallBatchNorm,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<lcgcn::Array>()
                                  .Arg<lcgcn::Channels>()
                                  .Arg<lcgcn::Channels>()
                                  .Arg<lcgcn::Channels>()
                                  .RemainingArgs()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu")
                                  .Ret<lcgcn::Array>()
                                  .Ret<lcgcn::Channels>()
                                  .Ret<lcgcn::Channels>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnBatchNormGradient, lcgcn::CallBatchNormGradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<lcgcn::Array>()
                                  .Arg<lcgcn::Array>()
                                  .Arg<lcgcn::Array>()
                                  .Arg<lcgcn::Channels>()
                                  .Arg<lcgcn::Channels>()
                                  .Arg<lcgcn::Channels>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu")
                                  .Ret<lcgcn::Array>()
                                  .Ret<lcgcn::Channels>()
                                  .Ret<lcgcn::Channels>()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    LcgcnUpsampling, lcgcn::CallUpsampling,
    xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().Arg<lcgcn::Array>().Ret<lcgcn::Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    LcgcnUpsamplingGradient, lcgcn::CallUpsamplingGradient,
    xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().Arg<lcgcn::Array>().Ret<lcgcn::Array>());

#pragma GCC visibility pop
