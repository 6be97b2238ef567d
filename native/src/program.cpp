#include "program.h"

#include <cstring>

namespace td {
namespace {

constexpr int64_t kMagic = 0x31474f5250445400;  // "\0TDPROG1"

class Reader {
 public:
  Reader(const uint8_t* bytes, size_t count) : at_(bytes), end_(bytes + count) {}

  int64_t word() {
    int64_t w;
    take(&w, 8);
    return w;
  }
  int integer() { return static_cast<int>(word()); }
  bool flag() { return word() != 0; }
  double number() {
    double d;
    take(&d, 8);
    return d;
  }
  template <class T>
  std::vector<T> array() {
    const int64_t n = word();
    if (n < 0 || static_cast<size_t>(n) > static_cast<size_t>(end_ - at_) / sizeof(T)) fail();
    std::vector<T> out(static_cast<size_t>(n));
    const size_t bytes = out.size() * sizeof(T);
    if (bytes) take(out.data(), bytes);
    skip((8 - bytes % 8) % 8);
    return out;
  }
  bool done() const { return at_ == end_; }
  [[noreturn]] static void fail() { throw std::runtime_error("the program is cut off or damaged"); }

 private:
  void take(void* to, size_t n) {
    if (static_cast<size_t>(end_ - at_) < n) fail();
    std::memcpy(to, at_, n);
    at_ += n;
  }
  void skip(size_t n) {
    if (static_cast<size_t>(end_ - at_) < n) fail();
    at_ += n;
  }
  const uint8_t* at_;
  const uint8_t* end_;
};

std::vector<int> integers(Reader& in) {
  std::vector<int> out;
  for (int32_t i : in.array<int32_t>()) out.push_back(i);
  return out;
}

// Lists for each input the outputs that read it.
void invert(Axis& axis) {
  std::vector<std::vector<int32_t>> readers(static_cast<size_t>(axis.n_in));
  for (int o = 0; o < axis.n_out; ++o) {
    for (int t = 0; t < axis.n_taps; ++t) {
      const int i = axis.window ? o * axis.stride - axis.pad + t * axis.dilation
                                : axis.taps[static_cast<size_t>(o) * axis.n_taps + t];
      if (i < 0 || i >= axis.n_in) continue;
      std::vector<int32_t>& list = readers[static_cast<size_t>(i)];
      if (list.empty() || list.back() != o) list.push_back(o);
    }
  }
  axis.first.push_back(0);
  for (const std::vector<int32_t>& list : readers) {
    axis.outs.insert(axis.outs.end(), list.begin(), list.end());
    axis.first.push_back(static_cast<int32_t>(axis.outs.size()));
  }
}

Axis read_axis(Reader& in) {
  Axis axis{};
  axis.window = in.flag();
  axis.n_in = in.integer();
  axis.n_out = in.integer();
  axis.kernel = in.integer();
  axis.stride = in.integer();
  axis.dilation = in.integer();
  axis.pad = in.integer();
  axis.n_taps = axis.kernel;
  if (!axis.window) {
    axis.taps = in.array<int32_t>();
    axis.n_taps = axis.n_out ? static_cast<int>(axis.taps.size()) / axis.n_out : 0;
  }
  invert(axis);
  return axis;
}

Footprint read_footprint(Reader& in) {
  Footprint f{};
  f.kind = static_cast<Footprint::Kind>(in.integer());
  if (f.kind == Footprint::separable) {
    f.rows = read_axis(in);
    f.cols = read_axis(in);
  }
  return f;
}

Part read_part(Reader& in) {
  Part part{};
  part.residual = in.flag();
  part.fn = in.integer();
  for (float& a : part.args) a = static_cast<float>(in.number());
  part.input = in.integer();
  part.first = in.flag();
  part.slope = in.array<float>();
  return part;
}

Step read_step(Reader& in) {
  Step step{};
  step.code = static_cast<Code>(in.integer());
  if (static_cast<int>(step.code) < 0 || step.code >= Code::count_) Reader::fail();
  step.output = in.integer();
  step.inputs = integers(in);
  step.arity = in.integer();
  for (size_t i = 0; i < step.inputs.size(); ++i) step.footprints.push_back(read_footprint(in));
  const int parts = in.integer();
  for (int i = 0; i < parts; ++i) step.epilogue.push_back(read_part(in));
  const int n_ints = in.integer();
  for (int i = 0; i < n_ints; ++i) step.params.ints.push_back(in.word());
  step.params.floats = in.array<float>();
  const int n_arrays = in.integer();
  for (int i = 0; i < n_arrays; ++i) step.params.arrays.push_back(in.array<float>());
  const int n_indices = in.integer();
  for (int i = 0; i < n_indices; ++i) step.params.indices.push_back(in.array<int32_t>());
  return step;
}

}  // namespace

Program read_program(const uint8_t* bytes, size_t count) {
  Reader in(bytes, count);
  if (in.word() != kMagic) throw std::runtime_error("this is no program of this version");
  Program p{};
  p.is_bf16 = in.flag();
  p.input.value = in.integer();
  p.input.h = in.integer();
  p.input.w = in.integer();
  p.input.c = in.integer();
  p.input.bgr = in.flag();
  for (auto* list : {&p.input.scale_u8, &p.input.shift_u8, &p.input.scale_f32, &p.input.shift_f32,
                     &p.input.to_full_scale})
    *list = in.array<float>();
  const int n_buffers = in.integer();
  for (int i = 0; i < n_buffers; ++i) {
    Buffer b{};
    b.h = in.integer();
    b.w = in.integer();
    b.c = in.integer();
    b.element = static_cast<Element>(in.integer());
    b.item_bytes = in.integer();
    p.buffers.push_back(b);
  }
  const int n_values = in.integer();
  for (int i = 0; i < n_values; ++i) {
    Value v{};
    v.buffer = in.integer();
    v.offset = in.integer();
    v.h = in.integer();
    v.w = in.integer();
    v.c = in.integer();
    v.owners = integers(in);
    p.values.push_back(v);
  }
  p.reported = integers(in);
  for (size_t i = 0; i < p.reported.size(); ++i)
    p.values[static_cast<size_t>(p.reported[i])].reported = static_cast<int>(i);
  const int n_steps = in.integer();
  for (int i = 0; i < n_steps; ++i) p.steps.push_back(read_step(in));
  if (!in.done()) throw std::runtime_error("the program has more bytes than steps");
  return p;
}

}  // namespace td
