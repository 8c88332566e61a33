// Causal attention inside each document of a pack, forward and backward, on a processor with matrix instructions.
//
// A document is cut into blocks of BLOCK tokens. Scores are made for one block of queries and one of keys at a time, in
// float32, and only where keys are not later than queries; nothing is computed between documents. One thread does all of
// a document's head, so that the result does not depend on the number of threads. Source: Dao 2023, arXiv:2307.08691,
// sections 2.3 and 3.1, with all keys of a block of queries at once instead of the running maximum.
//
// What stands on the right of a product lies as brgemm reads it: bfloat16 in pairs of rows, float32 as it is.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using Vec = at::vec::Vectorized<float>;
using at::native::cpublas::brgemm;

constexpr int64_t BLOCK = 64;
constexpr int64_t PANEL = BLOCK * BLOCK;
constexpr float LATER = -1e30f;  // a score that leaves no probability

struct Document {
  int64_t row, begin, length;
  int64_t num_blocks() const { return (length + BLOCK - 1) / BLOCK; }
};

// (rows, heads, tokens, width) with any strides but the last, which is 1.
template <typename T>
struct View {
  T* data;
  int64_t row_stride, head_stride, token_stride;
  T* at(const Document& document, int64_t head, int64_t token) const {
    return data + document.row * row_stride + head * head_stride + (document.begin + token) * token_stride;
  }
};

std::vector<Document> find_documents(const int64_t* numbers, int64_t rows, int64_t tokens) {
  std::vector<Document> found;
  for (int64_t row = 0; row < rows; ++row, numbers += tokens) {
    for (int64_t begin = 0, end = 0; begin < tokens; begin = end) {
      while (end < tokens && numbers[end] == numbers[begin]) ++end;
      if (numbers[begin] != 0) found.push_back({row, begin, end - begin});
    }
  }
  // The longest first, so that no thread is left with one at the end.
  std::stable_sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.length > b.length; });
  return found;
}

template <typename T>
constexpr int64_t PAIR = sizeof(T) == 2 ? 2 : 1;

// `count` rows of a head as a block of BLOCK rows, the rest zero.
template <typename T>
void copy_rows(T* out, const T* from, int64_t stride, int64_t count, int64_t width) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(out + i * width, from + i * stride, width * sizeof(T));
  std::memset(out + count * width, 0, (BLOCK - count) * width * sizeof(T));
}

// A block (BLOCK, width) as the right side of a product over its rows.
template <typename T>
void pack(T* out, const T* block, int64_t width) {
  constexpr int64_t P = PAIR<T>;
  for (int64_t i = 0; i < BLOCK; i += P)
    for (int64_t w = 0; w < width; ++w)
      for (int64_t p = 0; p < P; ++p) out[i * width + w * P + p] = block[(i + p) * width + w];
}

// Its transpose (width, BLOCK) as the right side of a product over its columns.
template <typename T>
void pack_transposed(T* out, const T* block, int64_t width) {
  constexpr int64_t P = PAIR<T>;
  for (int64_t w = 0; w < width; w += P)
    for (int64_t i = 0; i < BLOCK; ++i)
      for (int64_t p = 0; p < P; ++p) out[w * BLOCK + i * P + p] = block[i * width + w + p];
}

template <typename T>
void transpose(T* out, const T* block, int64_t width) {
  for (int64_t w = 0; w < width; ++w)
    for (int64_t i = 0; i < BLOCK; ++i) out[w * BLOCK + i] = block[i * width + w];
}

template <typename T>
void cast_into(T* out, const float* from, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(from[i] * factor);
}

inline void store(float* out, Vec first, Vec second) {
  first.store(out);
  second.store(out + Vec::size());
}
inline void store(c10::BFloat16* out, Vec first, Vec second) {
  at::vec::convert_float_bfloat16(first, second).store(out);
}

// out (BLOCK, n) = or += left (BLOCK, k) @ right (k, n)
template <typename T>
void multiply(float* out, const T* left, const T* right, int64_t m, int64_t n, int64_t k, bool add) {
  brgemm(m, n, k, /*ld_a=*/k, /*ld_b=*/n, /*ld_c=*/n, add, left, right, out, /*is_vnni=*/PAIR<T> == 2);
}

// Panels [keys / BLOCK][BLOCK queries][BLOCK keys] of scores become probabilities but for their denominators `sums`.
template <typename T>
void exponentiate(T* out, float* scores, float* sums, float* highest, int64_t num_panels, float scale) {
  const Vec scales(scale);
  for (int64_t query = 0; query < BLOCK; ++query) {
    float* last = scores + (num_panels - 1) * PANEL + query * BLOCK;
    std::fill(last + query + 1, last + BLOCK, LATER);
    Vec most(LATER), sum(0.0f);
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const float* row = scores + panel * PANEL + query * BLOCK;
      for (int64_t key = 0; key < BLOCK; key += Vec::size()) most = at::vec::maximum(most, Vec::loadu(row + key));
    }
    highest[query] = at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, most) * scale;
    const Vec lowered(-highest[query]);
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const float* row = scores + panel * PANEL + query * BLOCK;
      T* chances = out + panel * PANEL + query * BLOCK;
      for (int64_t key = 0; key < BLOCK; key += 2 * Vec::size()) {
        const Vec first = at::vec::fmadd(Vec::loadu(row + key), scales, lowered).exp_u20();
        const Vec second = at::vec::fmadd(Vec::loadu(row + key + Vec::size()), scales, lowered).exp_u20();
        sum = sum + first + second;
        store(chances + key, first, second);
      }
    }
    sums[query] = at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return a + b; }, sum);
  }
}

template <typename T>
void attend_head(const View<const T>& query, const View<const T>& key, const View<const T>& value, const View<T>& out,
                 float* lse, int64_t num_heads, int64_t num_tokens, int64_t groups, const Document& document,
                 int64_t kv_head, int64_t width, float scale) {
  const int64_t num_blocks = document.num_blocks(), size = BLOCK * width;
  std::vector<T> keys(num_blocks * size), values(num_blocks * size), block(size), chances(num_blocks * PANEL);
  std::vector<float> scores(num_blocks * PANEL), result(size), sums(BLOCK), highest(BLOCK);
  auto count = [&](int64_t number) { return std::min(BLOCK, document.length - number * BLOCK); };
  for (int64_t number = 0; number < num_blocks; ++number) {
    copy_rows(block.data(), key.at(document, kv_head, number * BLOCK), key.token_stride, count(number), width);
    pack_transposed(keys.data() + number * size, block.data(), width);
    copy_rows(block.data(), value.at(document, kv_head, number * BLOCK), value.token_stride, count(number), width);
    pack(values.data() + number * size, block.data(), width);
  }
  for (int64_t head = kv_head * groups; head < (kv_head + 1) * groups; ++head) {
    for (int64_t number = 0; number < num_blocks; ++number) {
      copy_rows(block.data(), query.at(document, head, number * BLOCK), query.token_stride, count(number), width);
      for (int64_t panel = 0; panel <= number; ++panel)
        multiply(scores.data() + panel * PANEL, block.data(), keys.data() + panel * size, BLOCK, BLOCK, width, false);
      exponentiate(chances.data(), scores.data(), sums.data(), highest.data(), number + 1, scale);
      for (int64_t panel = 0; panel <= number; ++panel)
        multiply(result.data(), chances.data() + panel * PANEL, values.data() + panel * size, BLOCK, width, BLOCK,
                 panel > 0);
      float* logarithms = lse + (document.row * num_heads + head) * num_tokens + document.begin + number * BLOCK;
      for (int64_t i = 0; i < count(number); ++i) {
        cast_into(out.at(document, head, number * BLOCK + i), result.data() + i * width, width, 1 / sums[i]);
        logarithms[i] = highest[i] + std::log(sums[i]);
      }
    }
  }
}

// Two rows of bfloat16 numbers, or one of float32, as the right side of a product over the rows.
inline void interleave(c10::BFloat16* out, const c10::BFloat16* first, const c10::BFloat16* second) {
  for (int64_t i = 0; i < BLOCK; ++i) {
    out[2 * i] = first[i];
    out[2 * i + 1] = second[i];
  }
}
inline void interleave(float* out, const float* first, const float*) { std::copy_n(first, BLOCK, out); }

// The panels [BLOCK keys][BLOCK queries] of one block of each: scores become probabilities, `of_chances` gradients of scores.
template <typename T>
void differentiate(T* chances, T* of_scores, T* of_scores_packed, float* scores, float* of_chances, const float* lse,
                   const float* dots, bool is_diagonal, float scale) {
  constexpr int64_t P = PAIR<T>;
  const Vec scales(scale);
  for (int64_t key = 0; key < BLOCK; ++key) {
    float *score = scores + key * BLOCK, *gradient = of_chances + key * BLOCK;
    if (is_diagonal) std::fill(score, score + key, LATER);
    for (int64_t query = 0; query < BLOCK; query += 2 * Vec::size()) {
      Vec chance[2], of_score[2];
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t at = query + half * Vec::size();
        chance[half] = at::vec::fmsub(Vec::loadu(score + at), scales, Vec::loadu(lse + at)).exp_u20();
        of_score[half] = chance[half] * (Vec::loadu(gradient + at) - Vec::loadu(dots + at)) * scales;
      }
      store(chances + key * BLOCK + query, chance[0], chance[1]);
      store(of_scores + key * BLOCK + query, of_score[0], of_score[1]);
    }
    if (key % P == P - 1) {
      const T* first = of_scores + (key - P + 1) * BLOCK;
      interleave(of_scores_packed + (key - P + 1) * BLOCK, first, of_scores + key * BLOCK);
    }
  }
}

template <typename T>
void attend_head_backward(const View<const T>& gradient, const View<const T>& query, const View<const T>& key,
                          const View<const T>& value, const View<const T>& out, const float* lse,
                          const View<T>& of_query, const View<T>& of_key, const View<T>& of_value, int64_t num_heads,
                          int64_t num_tokens, int64_t groups, const Document& document, int64_t kv_head, int64_t width,
                          float scale) {
  const int64_t num_blocks = document.num_blocks(), size = BLOCK * width;
  std::vector<T> keys(num_blocks * size), keys_transposed(num_blocks * size), values(num_blocks * size);
  std::vector<float> of_keys(num_blocks * size), of_values(num_blocks * size);
  std::vector<T> block(size), queries(size), queries_transposed(size), gradients(size), gradients_transposed(size);
  std::vector<T> chances(PANEL), of_scores(PANEL), of_scores_packed(PANEL);
  std::vector<float> scores(PANEL), of_chances(PANEL), of_block(size), logarithms(BLOCK), dots(BLOCK);
  auto count = [&](int64_t number) { return std::min(BLOCK, document.length - number * BLOCK); };
  for (int64_t number = 0; number < num_blocks; ++number) {
    T* rows = keys.data() + number * size;
    copy_rows(rows, key.at(document, kv_head, number * BLOCK), key.token_stride, count(number), width);
    transpose(keys_transposed.data() + number * size, rows, width);
    copy_rows(values.data() + number * size, value.at(document, kv_head, number * BLOCK), value.token_stride,
              count(number), width);
  }
  for (int64_t head = kv_head * groups; head < (kv_head + 1) * groups; ++head) {
    for (int64_t number = 0; number < num_blocks; ++number) {
      copy_rows(block.data(), query.at(document, head, number * BLOCK), query.token_stride, count(number), width);
      pack(queries.data(), block.data(), width);
      pack_transposed(queries_transposed.data(), block.data(), width);
      copy_rows(block.data(), gradient.at(document, head, number * BLOCK), gradient.token_stride, count(number), width);
      pack(gradients.data(), block.data(), width);
      pack_transposed(gradients_transposed.data(), block.data(), width);
      std::fill(logarithms.begin(), logarithms.end(), -LATER);
      std::fill(dots.begin(), dots.end(), 0.0f);
      const float* begin = lse + (document.row * num_heads + head) * num_tokens + document.begin + number * BLOCK;
      std::copy_n(begin, count(number), logarithms.begin());
      for (int64_t i = 0; i < count(number); ++i) {
        const T* row = out.at(document, head, number * BLOCK + i);
        float dot = 0;
        for (int64_t w = 0; w < width; ++w)
          dot += static_cast<float>(block[i * width + w]) * static_cast<float>(row[w]);
        dots[i] = dot;
      }
      for (int64_t panel = 0; panel <= number; ++panel) {
        multiply(scores.data(), keys.data() + panel * size, queries_transposed.data(), BLOCK, BLOCK, width, false);
        multiply(of_chances.data(), values.data() + panel * size, gradients_transposed.data(), BLOCK, BLOCK, width,
                 false);
        differentiate(chances.data(), of_scores.data(), of_scores_packed.data(), scores.data(), of_chances.data(),
                      logarithms.data(), dots.data(), panel == number, scale);
        const bool is_first = head == kv_head * groups && panel == number;
        multiply(of_values.data() + panel * size, chances.data(), gradients.data(), BLOCK, width, BLOCK, !is_first);
        multiply(of_keys.data() + panel * size, of_scores.data(), queries.data(), BLOCK, width, BLOCK, !is_first);
        multiply(of_block.data(), keys_transposed.data() + panel * size, of_scores_packed.data(), width, BLOCK, BLOCK,
                 panel > 0);
      }
      for (int64_t i = 0; i < count(number); ++i) {
        T* row = of_query.at(document, head, number * BLOCK + i);
        for (int64_t w = 0; w < width; ++w) row[w] = static_cast<T>(of_block[w * BLOCK + i]);
      }
    }
  }
  for (int64_t token = 0; token < document.length; ++token) {
    cast_into(of_key.at(document, kv_head, token), of_keys.data() + token * width, width, 1.0f);
    cast_into(of_value.at(document, kv_head, token), of_values.data() + token * width, width, 1.0f);
  }
}

struct Sizes {
  int64_t rows, heads, kv_heads, tokens, width;
};

// Calls `work(document, kv_head)` for each, in all threads.
template <typename Work>
void for_each_head(const Sizes& sizes, const int64_t* documents, Work work) {
  const auto found = find_documents(documents, sizes.rows, sizes.tokens);
  const int64_t num_tasks = static_cast<int64_t>(found.size()) * sizes.kv_heads;
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; ++task) work(found[task / sizes.kv_heads], task % sizes.kv_heads);
    at::native::cpublas::brgemm_release();
  }
}

template <typename T>
View<T> view(void* const* tensors, const int64_t* strides, int64_t number) {
  const int64_t* own = strides + 3 * number;
  return {static_cast<T*>(tensors[number]), own[0], own[1], own[2]};
}

template <typename T>
void forward(void* const* tensors, const int64_t* strides, const Sizes& sizes, const int64_t* documents, float* lse,
             float scale) {
  const auto query = view<const T>(tensors, strides, 0), key = view<const T>(tensors, strides, 1),
             value = view<const T>(tensors, strides, 2);
  const auto out = view<T>(tensors, strides, 3);
  for_each_head(sizes, documents, [&](const Document& document, int64_t kv_head) {
    attend_head<T>(query, key, value, out, lse, sizes.heads, sizes.tokens, sizes.heads / sizes.kv_heads, document,
                   kv_head, sizes.width, scale);
  });
}

template <typename T>
void backward(void* const* tensors, const int64_t* strides, const Sizes& sizes, const int64_t* documents,
              const float* lse, float scale) {
  const auto gradient = view<const T>(tensors, strides, 0), query = view<const T>(tensors, strides, 1),
             key = view<const T>(tensors, strides, 2), value = view<const T>(tensors, strides, 3),
             out = view<const T>(tensors, strides, 4);
  const auto of_query = view<T>(tensors, strides, 5), of_key = view<T>(tensors, strides, 6),
             of_value = view<T>(tensors, strides, 7);
  for_each_head(sizes, documents, [&](const Document& document, int64_t kv_head) {
    attend_head_backward<T>(gradient, query, key, value, out, lse, of_query, of_key, of_value, sizes.heads,
                            sizes.tokens, sizes.heads / sizes.kv_heads, document, kv_head, sizes.width, scale);
  });
}

}  // namespace

// `tensors` are query, key, value, out; three strides (row, head, token) of each lie in `strides`.
extern "C" void attend(bool is_bfloat16, void* const* tensors, const int64_t* strides, const int64_t* sizes,
                       const int64_t* documents, float* lse, float scale) {
  const Sizes given{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  is_bfloat16 ? forward<c10::BFloat16>(tensors, strides, given, documents, lse, scale)
              : forward<float>(tensors, strides, given, documents, lse, scale);
}

// `tensors` are gradient, query, key, value, out, and room for the gradients of query, key, value.
extern "C" void attend_backward(bool is_bfloat16, void* const* tensors, const int64_t* strides, const int64_t* sizes,
                                const int64_t* documents, const float* lse, float scale) {
  const Sizes given{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  is_bfloat16 ? backward<c10::BFloat16>(tensors, strides, given, documents, lse, scale)
              : backward<float>(tensors, strides, given, documents, lse, scale);
}

extern "C" bool is_fast() { return at::native::cpublas::could_pack(at::kBFloat16); }
