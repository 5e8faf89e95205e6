// The kernels as custom calls of XLA: https://docs.jax.dev/en/latest/ffi.html

#include "batch_norm.h"
#include "common.h"
#include "convolution.h"
#include "upsampling.h"

namespace {

using Array = ffi::Buffer<ffi::F32, 4>;
using Channels = ffi::Buffer<ffi::F32, 1>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;
using ChannelsResult = ffi::ResultBuffer<ffi::F32, 1>;
using Dimensions = Array::Dimensions;

Shape ShapeOf(Dimensions input, Dimensions output, Dimensions kernel, int64_t stride) {
  return {input[0],  input[1],  input[2], input[3], output[1],
          output[2], output[3], stride,   kernel[0]};
}

// The other arguments are the bias, if any, and the residual, if any.
ffi::Error CallConvolution(ffi::ThreadPool pool, Array input, Array kernel,
                           ffi::RemainingArgs others, int64_t stride, bool relu, Result output) {
  const float *bias = nullptr, *residual = nullptr;
  for (size_t i = 0; i < others.size(); ++i) {
    if (auto channels = others.get<Channels>(i); channels.has_value()) {
      bias = channels->typed_data();
    } else if (auto array = others.get<Array>(i); array.has_value()) {
      residual = array->typed_data();
    } else {
      return array.error();
    }
  }
  Convolve(pool, ShapeOf(input.dimensions(), output->dimensions(), kernel.dimensions(), stride),
           input.typed_data(), kernel.typed_data(), bias, residual, relu, output->typed_data());
  return ffi::Error::Success();
}

ffi::Error CallKernelGradient(ffi::ThreadPool pool, Array input, Array gradient, int64_t stride,
                              Result output) {
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
    residual = array->typed_data();
  }
  BatchNormalize(pool, input.element_count(), scale.element_count(), input.typed_data(),
                 scale.typed_data(), bias.typed_data(), shift.typed_data(), residual, epsilon, relu,
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
    residual_gradient = (*array)->typed_data();
  }
  BatchNormGradient(pool, input.element_count(), scale.element_count(), input.typed_data(),
                    output.typed_data(), gradient.typed_data(), scale.typed_data(),
                    mean.typed_data(), variance.typed_data(), epsilon, relu,
                    input_gradient->typed_data(), scale_gradient->typed_data(),
                    bias_gradient->typed_data(), residual_gradient);
  return ffi::Error::Success();
}

Sizes SizesOf(Dimensions input, Dimensions output) {
  return {input[0], input[1], input[2], input[3], output[1], output[2]};
}

ffi::Error CallUpsampling(ffi::ThreadPool pool, Array input, Result output) {
  Upsample(pool, SizesOf(input.dimensions(), output->dimensions()), input.typed_data(),
           output->typed_data());
  return ffi::Error::Success();
}

ffi::Error CallUpsamplingGradient(ffi::ThreadPool pool, Array gradient, Result input_gradient) {
  UpsampleGradient(pool, SizesOf(input_gradient->dimensions(), gradient.dimensions()),
                   gradient.typed_data(), input_gradient->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnConvolution, CallConvolution,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Attr<int64_t>("stride")
                                  .Attr<bool>("relu")
                                  .Ret<Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnKernelGradient, CallKernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Attr<int64_t>("stride")
                                  .Ret<Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnBatchNorm, CallBatchNorm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Channels>()
                                  .Arg<Channels>()
                                  .Arg<Channels>()
                                  .RemainingArgs()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu")
                                  .Ret<Array>()
                                  .Ret<Channels>()
                                  .Ret<Channels>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnBatchNormGradient, CallBatchNormGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Channels>()
                                  .Arg<Channels>()
                                  .Arg<Channels>()
                                  .Attr<float>("epsilon")
                                  .Attr<bool>("relu")
                                  .Ret<Array>()
                                  .Ret<Channels>()
                                  .Ret<Channels>()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnUpsampling, CallUpsampling,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(LcgcnUpsamplingGradient, CallUpsamplingGradient,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>());
