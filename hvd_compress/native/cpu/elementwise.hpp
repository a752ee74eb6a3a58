// Whole vectors, element by element.
#pragma once

#include "base.hpp"

namespace hvd {

void zero(void* data, int64_t bytes);
void copy(void* to, const void* from, int64_t bytes);
void add(float* total, const float* x, int64_t n);
void affine(const float* x, float a, const float* y, float b, int64_t n, float* out);
void accumulate(const float* u, float momentum, float* g, const float* v, bool nesterov, int64_t n, float* out);
void half_rest(float* x, const float* residual, int64_t n, uint16_t* halves);
void to_half(const float* x, int64_t n, uint16_t* halves);
void from_half(const uint16_t* halves, int64_t n, float* out);

struct ElementwiseLoops {
    virtual void add(const float* x, const float* y, int64_t n, float* out) const = 0;
    virtual void affine(const float* x, float a, const float* y, float b, int64_t n, float* out) const = 0;
    // g becomes m * u + g, and out v + g, with Nesterov's look ahead v + m * g + the former g. Out is none of the
    // others.
    virtual void accumulate(
        const float* u, float momentum, float* g, const float* v, bool nesterov, int64_t n, float* out
    ) const = 0;
    // Writes x (plus the residual, if not null) as float16 bits; x becomes the rounding error.
    virtual void half_rest(float* x, const float* residual, int64_t n, uint16_t* halves) const = 0;
    virtual void to_half(const float* x, int64_t n, uint16_t* halves) const = 0;
    virtual void from_half(const uint16_t* halves, int64_t n, float* out) const = 0;
    virtual void to_sign(float* x, int64_t n) const = 0;
    // Copies past the caches where `to` is aligned to 64 bytes.
    virtual void stream(float* to, const float* from, int64_t n) const = 0;

protected:
    ~ElementwiseLoops() = default;
};

}  // namespace hvd
