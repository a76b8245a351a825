// Normal numbers by place: Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405) and the transform of Box and Muller (1958).
//
// One source for the C++ compiler and for NVIDIA's, with the same bits from both: multiplications and sums alone, each rounded by itself
// (no fused multiply-add), and the square root, which IEEE 754 rounds correctly. The polynomials are least-squares fits of the functions
// in their comments, near the smallest largest error, 1e-9 of a relative error before rounding.

#ifdef __CUDACC__
#define EACH __device__ __forceinline__
#else
#include <cmath>
#define EACH static inline
#endif

typedef unsigned int Word;

struct Words {
    Word at[4];
};

struct Normals {
    float at[4];
};

// The 128 bits of one place.
EACH Words philox(Words place, Word key0, Word key1) {
    for (int round = 0; round < 10; ++round) {
        unsigned long long a = 0xD2511F53ull * place.at[0];
        unsigned long long b = 0xCD9E8D57ull * place.at[2];
        Words next = {{(Word)(b >> 32) ^ place.at[1] ^ key0, (Word)b, (Word)(a >> 32) ^ place.at[3] ^ key1, (Word)a}};
        place = next;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return place;
}

union Bits {
    float number;
    Word bits;
};

// ln(u) for u from 2^-33 to 1: u = 2^e (1 + f) with 1 + f from sqrt(1/2) to sqrt(2), and ln(1 + f) = f - f^2 / 2 + f^3 P(f).
EACH float logarithm(float u) {
    Bits value;
    value.number = u;
    int shifted = (int)(value.bits - 0x3F3504F3u); // the bits of sqrt(1/2)
    int e = shifted >> 23;
    value.bits -= (Word)e << 23;
    float f = value.number - 1.0f;
    float p = 0.06746631860733032f;
    p = p * f + -0.11675649136304855f;
    p = p * f + 0.11888165026903152f;
    p = p * f + -0.1240558922290802f;
    p = p * f + 0.14219552278518677f;
    p = p * f + -0.1666799634695053f;
    p = p * f + 0.2000211924314499f;
    p = p * f + -0.25000008940696716f;
    p = p * f + 0.3333331346511841f;
    float square = f * f;
    float rest = square * f * p;
    // ln(2) in two parts, of which the larger one has few bits.
    float count = (float)e;
    rest = rest + count * -2.12194440e-4f;
    rest = rest - 0.5f * square;
    return (f + rest) + count * 0.693359375f;
}

// The sine and cosine of a whole turn times w / 2^32.
EACH void turn(Word w, float* sine, float* cosine) {
    Word quarter = (w + 0x20000000u) >> 30; // the nearest one
    float x = (float)(int)(w - (quarter << 30)) * 2.3283064365386963e-10f; // at most an eighth of a turn
    float y = x * x;
    float s = 41.47294998168945f;
    s = s * y + -76.69786834716797f;
    s = s * y + 81.6052017211914f;
    s = s * y + -41.34170150756836f;
    s = s * y + 6.2831854820251465f;
    s = s * x;
    float c = 59.22040557861328f;
    c = c * y + -85.44285583496094f;
    c = c * y + 64.93931579589844f;
    c = c * y + -19.739208221435547f;
    c = c * y + 1.0f;
    *sine = (quarter & 1) ? ((quarter & 2) ? -c : c) : ((quarter & 2) ? -s : s);
    *cosine = (quarter & 1) ? ((quarter & 2) ? s : -s) : ((quarter & 2) ? -c : c);
}

// Two normal numbers of two words.
EACH void pair(Word a, Word b, float* first, float* second) {
    float u = ((float)a + 0.5f) * 2.3283064365386963e-10f;
    float squared = -2.0f * logarithm(u);
#ifdef __CUDACC__
    float length = __fsqrt_rn(squared);
#else
    float length = std::sqrt(squared);
#endif
    float sine, cosine;
    turn(b, &sine, &cosine);
    *first = length * cosine;
    *second = length * sine;
}

EACH Normals normals(Words words) {
    Normals found;
    pair(words.at[0], words.at[1], &found.at[0], &found.at[1]);
    pair(words.at[2], words.at[3], &found.at[2], &found.at[3]);
    return found;
}

#ifdef __CUDACC__

// `out` [rows, count]; a row's place is three words, to which the number of four numbers in the row is put in front.
extern "C" __global__ void philox_normals(
    float* out, const Word* places, long long rows, long long count, Word key0, Word key1) {
    long long blocks = (count + 3) / 4;
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= rows * blocks) return;
    long long row = index / blocks, block = index % blocks;
    const Word* place = places + 3 * row;
    Words words = {{(Word)block, place[0], place[1], place[2]}};
    Normals found = normals(philox(words, key0, key1));
    float* to = out + row * count + 4 * block;
    for (int k = 0; k < 4; ++k)
        if (4 * block + k < count) to[k] = found.at[k];
}

#else

extern "C" void attrflow_philox_normals(float* out, unsigned long long count, const Word* place, const Word* key) {
    for (unsigned long long block = 0; 4 * block < count; ++block) {
        Words words = {{(Word)block, place[0], place[1], place[2]}};
        Normals found = normals(philox(words, key[0], key[1]));
        for (int k = 0; k < 4; ++k)
            if (4 * block + k < count) out[4 * block + k] = found.at[k];
    }
}

extern "C" void attrflow_philox_words(const Word* place, const Word* key, Word* out) {
    Words words = {{place[0], place[1], place[2], place[3]}};
    words = philox(words, key[0], key[1]);
    for (int k = 0; k < 4; ++k) out[k] = words.at[k];
}

extern "C" void attrflow_philox_transform(const Word* words, float* out) {
    Normals found = normals(Words{{words[0], words[1], words[2], words[3]}});
    for (int k = 0; k < 4; ++k) out[k] = found.at[k];
}

#endif
