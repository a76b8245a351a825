// The fused steps between products, for images whose channels lie together: [B, H, W, C].
//
// Compiled at first use. BF16 says what T is: bfloat16, as its bits, or float32. Sums, means and what is applied to
// a value are float32 in both. A vector is 16 bytes. What is read twice comes from registers or from the L2 cache.

#if BF16
typedef unsigned short T;
constexpr int V = 8;
__device__ __forceinline__ float up(T x) { return __uint_as_float(((unsigned)x) << 16); }
// To the nearest, ties to even, as libtorch rounds; a NaN stays one.
__device__ __forceinline__ T down(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (T)((bits >> 16) | 0x40);
    return (T)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float T;
constexpr int V = 4;
__device__ __forceinline__ float up(T x) { return x; }
__device__ __forceinline__ T down(float x) { return x; }
#endif

union Vector {
    uint4 bits;
    T at[V];
};

__device__ __forceinline__ Vector load(const T* from) {
    Vector v;
    v.bits = *(const uint4*)from;
    return v;
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// Adds up each group's part of `part` [slices, C] in a fixed order: the same numbers in every run.
__device__ void group_sums(const float* part, float* sums, int slices, int channels, int groups, float scale) {
    const int lane = threadIdx.x & 31, warps = blockDim.x >> 5, each = channels / groups;
    for (int group = threadIdx.x >> 5; group < groups; group += warps) {
        float sum = 0;
        for (int i = lane; i < slices * each; i += 32) sum += part[i / each * channels + group * each + i % each];
        sum = warp_sum(sum);
        if (lane == 0) sums[group] = sum * scale;
    }
    __syncthreads();
}

// out [B, S, C] = act(norm(x + shift)), C = c1 + c2: the channels of x [B, S, c1], then those of x2 [B, S, c2]. Row b gets
// row b % shifts of shift [shifts, C]. A block takes a row; its threads stand side by side over the channels, and in
// slices over the positions. With KEPT > 0 a thread keeps its KEPT vectors in registers.
template <int KEPT>
__device__ __forceinline__ void group_norm(const T* x, const T* x2, const T* shift, const float* weight, const float* bias,
                                           T* out, int positions, int c1, int c2, int groups, int shifts, int act, float eps) {
    extern __shared__ float shared[];
    const int channels = c1 + c2, across = channels / V, slices = blockDim.x / across;
    float *part = shared, *mean = shared + slices * channels, *variance = mean + groups;
    const int slice = threadIdx.x / across, c = threadIdx.x % across * V, each = channels / groups;
    const long long row = blockIdx.x;
    const int width = c < c1 ? c1 : c2;
    const T* from = c < c1 ? x + row * positions * c1 + c : x2 + row * positions * c2 + (c - c1);
    float add[V], sum[V], center[V];
    for (int j = 0; j < V; j++) add[j] = sum[j] = 0;
    if (shift) {
        Vector v = load(shift + row % shifts * channels + c);
        for (int j = 0; j < V; j++) add[j] = up(v.at[j]);
    }
    Vector kept[KEPT > 0 ? KEPT : 1];
    auto each_vector = [&](auto what) {
        if constexpr (KEPT > 0) {
            #pragma unroll
            for (int i = 0; i < KEPT; i++) {
                int position = slice + i * slices;
                if (position < positions) what(kept[i], position);
            }
        } else {
            for (int position = slice; position < positions; position += slices) {
                what(load(from + (long long)position * width), position);
            }
        }
    };
    if constexpr (KEPT > 0) {
        #pragma unroll
        for (int i = 0; i < KEPT; i++) {
            int position = slice + i * slices;
            if (position < positions) kept[i] = load(from + (long long)position * width);
        }
    }
    each_vector([&](const Vector& v, int) {
        for (int j = 0; j < V; j++) sum[j] += up(v.at[j]) + add[j];
    });
    for (int j = 0; j < V; j++) part[slice * channels + c + j] = sum[j];
    __syncthreads();
    group_sums(part, mean, slices, channels, groups, 1.0f / (positions * each));
    for (int j = 0; j < V; j++) {
        center[j] = mean[(c + j) / each] - add[j];
        sum[j] = 0;
    }
    each_vector([&](const Vector& v, int) {
        for (int j = 0; j < V; j++) {
            float far = up(v.at[j]) - center[j];
            sum[j] += far * far;
        }
    });
    for (int j = 0; j < V; j++) part[slice * channels + c + j] = sum[j];
    __syncthreads();
    group_sums(part, variance, slices, channels, groups, 1.0f / (positions * each));
    float scale[V], zero[V];
    for (int j = 0; j < V; j++) {
        scale[j] = weight[c + j] / sqrtf(variance[(c + j) / each] + eps);
        zero[j] = bias[c + j] - center[j] * scale[j];
    }
    each_vector([&](const Vector& v, int position) {
        Vector y;
        for (int j = 0; j < V; j++) {
            float value = up(v.at[j]) * scale[j] + zero[j];
            y.at[j] = down(act ? silu(value) : value);
        }
        *(uint4*)(out + (row * positions + position) * channels + c) = y.bits;
    });
}

#define GROUP_NORM(KEPT)                                                                                               \
    extern "C" __global__ __launch_bounds__(512) void group_norm_##KEPT(                                               \
        const T* x, const T* x2, const T* shift, const float* weight, const float* bias, T* out, int positions, int c1, \
        int c2, int groups, int shifts, int act, float eps) {                                                          \
        group_norm<KEPT>(x, x2, shift, weight, bias, out, positions, c1, c2, groups, shifts, act, eps);                \
    }
GROUP_NORM(0)
GROUP_NORM(2)
GROUP_NORM(4)
GROUP_NORM(8)
GROUP_NORM(16)

// x [R, C] += branch + bias, where they are given; out [R, C] = norm(x). A warp takes a row, a lane PER channels of it.
template <int PER>
__device__ __forceinline__ void layer_norm(T* x, const T* branch, const float* branch_bias, const float* weight,
                                           const float* bias, T* out, long long rows, float eps) {
    const long long row = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (row >= rows) return;
    constexpr int channels = PER * 32;
    const int c = (threadIdx.x & 31) * PER;
    T *own = x + row * channels + c, taken[PER], other[PER];
    float value[PER], sum = 0, squares = 0;
    for (int j = 0; j < PER; j++) taken[j] = own[j];
    if (branch) {
        for (int j = 0; j < PER; j++) other[j] = branch[row * channels + c + j];
        for (int j = 0; j < PER; j++) {
            taken[j] = down(up(taken[j]) + up(other[j]) + (branch_bias ? branch_bias[c + j] : 0.0f));
        }
        for (int j = 0; j < PER; j++) own[j] = taken[j];
    }
    for (int j = 0; j < PER; j++) sum += value[j] = up(taken[j]);
    const float mean = warp_sum(sum) / channels;
    for (int j = 0; j < PER; j++) {
        value[j] -= mean;
        squares += value[j] * value[j];
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / channels + eps);
    for (int j = 0; j < PER; j++) taken[j] = down(value[j] * scale * weight[c + j] + bias[c + j]);
    for (int j = 0; j < PER; j++) out[row * channels + c + j] = taken[j];
}

#define LAYER_NORM(PER)                                                                                             \
    extern "C" __global__ void layer_norm_##PER(T* x, const T* branch, const float* branch_bias, const float* weight, \
                                                const float* bias, T* out, long long rows, float eps) {             \
        layer_norm<PER>(x, branch, branch_bias, weight, bias, out, rows, eps);                                      \
    }
LAYER_NORM(1)
LAYER_NORM(2)
LAYER_NORM(3)
LAYER_NORM(4)
LAYER_NORM(8)
LAYER_NORM(10)
LAYER_NORM(20)
LAYER_NORM(40)

// out [R, W] = both[:, :W] * gelu(both[:, W:]), both [R, 2W].
extern "C" __global__ void gated_gelu(const T* both, T* out, int width, long long vectors) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    const int across = width / V;
    const long long row = i / across;
    const T* from = both + row * 2 * width + i % across * V;
    Vector value = load(from), gate = load(from + width);
    for (int j = 0; j < V; j++) value.at[j] = down(up(value.at[j]) * gelu(up(gate.at[j])));
    ((uint4*)out)[i] = value.bits;
}

// y [R, C] += x + bias.
extern "C" __global__ void add(const T* x, const float* bias, T* y, int channels, long long vectors) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    const int c = i % (channels / V) * V;
    Vector own = load(y + i * V), other = load(x + i * V);
    for (int j = 0; j < V; j++) own.at[j] = down(up(own.at[j]) + up(other.at[j]) + bias[c + j]);
    ((uint4*)y)[i] = own.bits;
}
