#pragma once

/// \file
/// What any std::pmr::memory_resource must do, as one function. It knows nothing of pmr_debug, nor of a test framework:
/// it returns what it found in words.
///
/// \verbatim
///   check(build)
///     build(upstream) ──> resource, or chain with it on top ──> recording upstream, which keeps the accounts
/// \endverbatim
///
///   std::vector<std::string> problems = conformance::check(conformance::builder_of<my_resource>());
///
/// Asked of the resource: memory for every size and power-of-two alignment, aligned, disjoint, and unchanged until it
/// is freed, in any order of frees; unique addresses for zero bytes; std::bad_alloc, and nothing else, for sizes that
/// cannot be, and business as usual afterwards; equality that is an equivalence. Asked of its use of the upstream:
/// powers of two only; every block given back once, with the size and alignment it was asked for, and not written to
/// later; nothing kept at the end; nothing lost and nothing harmed when the upstream refuses.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace conformance {

/// What is known of the resource under test. Sizes in bytes.
struct traits {
    std::size_t largest = std::size_t{1} << 16;            ///< largest block of the sweep
    std::size_t largest_alignment = std::size_t{1} << 12;  ///< of the sweep
    std::size_t churn_steps = 2000;                        ///< allocations and frees in random order
    unsigned threads = 0;  ///< that use it at once, each with blocks of its own; 0: none
    /// False: it takes nothing from the upstream, or is known not to live through a refusal (libstdc++'s pools crash).
    bool upstream_may_refuse = true;
};

/// A resource under test, alive.
class subject {
public:
    virtual ~subject() = default;
    [[nodiscard]] virtual std::pmr::memory_resource& top() noexcept = 0;
};

/// Makes a resource, or a chain, over an upstream that outlives it.
using builder = std::function<std::unique_ptr<subject>(std::pmr::memory_resource& upstream)>;

// ---- chains ---------------------------------------------------------------------------------------------------------

/// Resources on top of each other, the first on top. A resource that takes no upstream is the bottom.
/// What converts to a resource, such as a struct that holds one with its options, counts as one.
template <class Top, class... Below>
class chain {
public:
    explicit chain(std::pmr::memory_resource& upstream) : below_(upstream), top_(make<Top>(below_.top())) {}
    [[nodiscard]] Top& top() noexcept { return top_; }

    template <class Resource>
    static Resource make(std::pmr::memory_resource& upstream) {
        if constexpr (std::is_constructible_v<Resource, std::pmr::memory_resource*>) {
            return Resource(&upstream);
        } else {
            return Resource();
        }
    }

private:
    chain<Below...> below_;
    Top top_;
};

template <class Top>
class chain<Top> {
public:
    explicit chain(std::pmr::memory_resource& upstream) : top_(chain<Top, Top>::template make<Top>(upstream)) {}
    [[nodiscard]] Top& top() noexcept { return top_; }

private:
    Top top_;
};

/// Returns: a builder of `chain<Resources...>`.
template <class... Resources>
[[nodiscard]] builder builder_of() {
    class held final : public subject {
    public:
        explicit held(std::pmr::memory_resource& upstream) : chain_(upstream) {}
        std::pmr::memory_resource& top() noexcept override { return chain_.top(); }

    private:
        chain<Resources...> chain_;
    };
    return [](std::pmr::memory_resource& upstream) -> std::unique_ptr<subject> {
        return std::make_unique<held>(upstream);
    };
}

namespace detail {

// ---- findings -------------------------------------------------------------------------------------------------------

/// What was found, at most a few dozen: one mistake tends to be found at every step.
class findings {
public:
    void add(const std::string& what) {
        const std::scoped_lock hold(lock_);
        if (all_.size() < 32) {
            all_.push_back(part_ + ": " + what);
        }
    }
    void begin(std::string part) { part_ = std::move(part); }
    [[nodiscard]] std::vector<std::string> take() { return std::move(all_); }

private:
    std::mutex lock_;
    std::string part_;
    std::vector<std::string> all_;
};

inline std::string request(std::size_t bytes, std::size_t alignment) {
    return std::to_string(bytes) + " bytes with alignment " + std::to_string(alignment);
}

[[nodiscard]] inline bool is_power_of_two(std::size_t n) noexcept {
    return n != 0 && (n & (n - 1)) == 0;
}

// ---- the upstream ---------------------------------------------------------------------------------------------------

/// Keeps the accounts of who sits on top, fills what it gets back, and looks at the end whether the fill is still
/// there.
class recording_upstream final : public std::pmr::memory_resource {
public:
    explicit recording_upstream(findings& out) : out_(out) {}
    recording_upstream(const recording_upstream&) = delete;
    recording_upstream& operator=(const recording_upstream&) = delete;

    ~recording_upstream() override {
        for (const auto& [p, b] : blocks_) {
            if (b.live) {
                out_.add("never gave back " + request(b.bytes, b.alignment) + " of the upstream");
            } else if (!std::all_of(p, p + b.bytes, [](std::byte x) { return x == dead; })) {
                out_.add("wrote to " + request(b.bytes, b.alignment) + " of the upstream after giving it back");
            }
            ::operator delete (p, std::align_val_t{b.alignment});
        }
    }

    /// Effects: the call after \p calls more ones ends in std::bad_alloc.
    void refuse_after(std::size_t calls) {
        const std::scoped_lock hold(lock_);
        until_refusal_ = calls;
        refuses_ = true;
    }
    /// True if the refusal happened, which it does once.
    [[nodiscard]] bool refused() const {
        const std::scoped_lock hold(lock_);
        return !refuses_;
    }

private:
    static constexpr std::byte dead{0xEE};
    static constexpr std::size_t too_much = std::size_t{1} << 30;
    struct block {
        std::size_t bytes;
        std::size_t alignment;
        bool live;
    };

    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        const std::scoped_lock hold(lock_);
        if (!is_power_of_two(alignment)) {
            out_.add("asked the upstream for " + request(bytes, alignment));
            throw std::bad_alloc();
        }
        if (refuses_ && until_refusal_-- == 0) {
            refuses_ = false;
            throw std::bad_alloc();
        }
        if (bytes > too_much || alignment > too_much) {
            throw std::bad_alloc();
        }
        auto* const p = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment}));
        blocks_[p] = {bytes, alignment, true};
        return p;
    }

    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        const std::scoped_lock hold(lock_);
        const auto found = blocks_.find(static_cast<std::byte*>(p));
        if (found == blocks_.end() || !found->second.live) {
            out_.add("gave the upstream a pointer that is none of its blocks, as " + request(bytes, alignment));
            return;
        }
        block& b = found->second;
        if (b.bytes != bytes || b.alignment != alignment) {
            out_.add("asked the upstream for " + request(b.bytes, b.alignment) + ", gave back " +
                     request(bytes, alignment));
        }
        std::memset(p, static_cast<int>(dead), b.bytes);
        b.live = false;  // kept until the end, so that no address comes twice
    }

    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    findings& out_;
    mutable std::mutex lock_;
    std::map<std::byte*, block> blocks_;
    std::size_t until_refusal_ = 0;
    bool refuses_ = false;
};

// ---- the user -------------------------------------------------------------------------------------------------------

/// The blocks one user holds, each with contents of its own, which are looked at when it is freed.
class holder {
public:
    holder(std::pmr::memory_resource& r, findings& out) : r_(r), out_(out) {}
    holder(const holder&) = delete;
    holder& operator=(const holder&) = delete;
    ~holder() { free_all(); }

    /// Returns: false if it was refused.
    bool take(std::size_t bytes, std::size_t alignment) {
        void* p = nullptr;
        try {
            p = ask(bytes, alignment);
        } catch (const std::bad_alloc&) {
            return false;
        }
        const auto at = reinterpret_cast<std::uintptr_t>(p);
        if (at == 0) {
            out_.add("null for " + request(bytes, alignment));
            return false;
        }
        if (at % alignment != 0) {
            out_.add("misaligned memory for " + request(bytes, alignment));
        }
        expect_apart(at, bytes, alignment);
        const unsigned char seed = next_seed_++;
        write(p, bytes, seed);
        blocks_.push_back({p, bytes, alignment, seed});
        by_address_[at] = bytes;
        return true;
    }

    [[nodiscard]] std::size_t count() const noexcept { return blocks_.size(); }

    void free_one(std::size_t index) {
        const block b = blocks_[index];
        blocks_[index] = blocks_.back();
        blocks_.pop_back();
        by_address_.erase(reinterpret_cast<std::uintptr_t>(b.p));
        if (!holds(b)) {
            out_.add("the contents of " + request(b.bytes, b.alignment) + " changed while the block was in use");
        }
        r_.deallocate(b.p, b.bytes, b.alignment);
    }

    template <class Random>
    void free_all(Random& random) {
        while (!blocks_.empty()) {
            free_one(random() % blocks_.size());
        }
    }
    void free_all() {
        while (!blocks_.empty()) {
            free_one(blocks_.size() - 1);
        }
    }

private:
    struct block {
        void* p;
        std::size_t bytes;
        std::size_t alignment;
        unsigned char seed;
    };

    // Sizes that cannot be are no business of the compiler's.
    __attribute__((noinline, no_sanitize("undefined"))) void* ask(std::size_t bytes, std::size_t alignment) {
        volatile std::size_t hidden = bytes;
        return r_.allocate(hidden, alignment);
    }

    static unsigned char expected(unsigned char seed, std::size_t i) noexcept {
        return static_cast<unsigned char>(seed + i * 7);
    }
    static void write(void* p, std::size_t bytes, unsigned char seed) noexcept {
        auto* const at = static_cast<unsigned char*>(p);
        for (std::size_t i = 0; i < bytes; ++i) {
            at[i] = expected(seed, i);
        }
    }
    static bool holds(const block& b) noexcept {
        const auto* const at = static_cast<const unsigned char*>(b.p);
        for (std::size_t i = 0; i < b.bytes; ++i) {
            if (at[i] != expected(b.seed, i)) {
                return false;
            }
        }
        return true;
    }

    void expect_apart(std::uintptr_t at, std::size_t bytes, std::size_t alignment) {
        const auto above = by_address_.lower_bound(at);
        bool apart = above == by_address_.end() || (above->first != at && above->first - at >= bytes);
        if (above != by_address_.begin()) {
            const auto below = std::prev(above);
            apart = apart && at - below->first >= below->second;
        }
        if (!apart) {
            out_.add("memory that is in use for " + request(bytes, alignment));
        }
    }

    std::pmr::memory_resource& r_;
    findings& out_;
    std::vector<block> blocks_;
    std::map<std::uintptr_t, std::size_t> by_address_;
    unsigned char next_seed_ = 1;
};

using random_numbers = std::minstd_rand;

// ---- what is asked --------------------------------------------------------------------------------------------------

inline void sweep(std::pmr::memory_resource& r, const traits& t, findings& out) {
    std::vector<std::size_t> sizes{0};
    for (std::size_t power = 1; power <= t.largest; power *= 2) {
        for (const std::size_t size : {power - 1, power, power + 1}) {
            if (size > sizes.back() && size <= t.largest) {
                sizes.push_back(size);
            }
        }
    }
    holder blocks(r, out);
    random_numbers random(1);
    for (std::size_t alignment = 1; alignment <= t.largest_alignment; alignment *= 2) {
        for (const std::size_t size : sizes) {
            if (!blocks.take(size, alignment)) {
                out.add("refused " + request(size, alignment));
            }
        }
        if (blocks.count() > 200) {
            blocks.free_all(random);
        }
    }
    blocks.free_all(random);
}

inline void churn(std::pmr::memory_resource& r, const traits& t, unsigned seed, findings& out) {
    holder blocks(r, out);
    random_numbers random(seed);
    for (std::size_t step = 0; step < t.churn_steps; ++step) {
        if (blocks.count() != 0 && random() % 5 < 2) {
            blocks.free_one(random() % blocks.count());
            continue;
        }
        const std::size_t bytes = random() % 16 == 0 ? random() % t.largest : random() % 256;
        const std::size_t alignment = std::size_t{1} << random() % 7;
        if (!blocks.take(bytes, std::min(alignment, t.largest_alignment))) {
            out.add("refused " + request(bytes, alignment));
        }
        if (blocks.count() > 300) {
            blocks.free_all(random);
        }
    }
}

inline void no_bytes(std::pmr::memory_resource& r, const traits& t, findings& out) {
    // Between blocks with bytes, and freed both ways round.
    holder blocks(r, out);
    random_numbers random(2);
    for (int i = 0; i < 50; ++i) {
        if (!blocks.take(0, 1) || !blocks.take(8, 8) ||
            !blocks.take(0, std::min(t.largest_alignment, std::size_t{64}))) {
            out.add("refused no bytes, or eight");
        }
    }
    blocks.free_all(random);
}

inline void impossible_sizes(std::pmr::memory_resource& r, findings& out) {
    holder blocks(r, out);
    const auto usable = [&] {
        if (!blocks.take(24, 8)) {
            out.add("refused " + request(24, 8) + " after a size that cannot be");
        }
    };
    usable();
    for (const std::size_t bytes : {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 7, SIZE_MAX - 15, SIZE_MAX - 63, SIZE_MAX - 4095,
                                    SIZE_MAX - 65535, SIZE_MAX / 2 + 2, SIZE_MAX / 2 + 1, SIZE_MAX / 2}) {
        for (const std::size_t alignment : {std::size_t{1}, std::size_t{16}, std::size_t{4096}, SIZE_MAX / 2 + 1}) {
            void* p = nullptr;
            try {
                volatile std::size_t hidden = bytes;
                volatile std::size_t hidden_alignment = alignment;
                p = [&]() __attribute__((noinline, no_sanitize("undefined"))) {
                    return r.allocate(hidden, hidden_alignment);
                }
                ();
                out.add("gave memory for " + request(bytes, alignment));
            } catch (const std::bad_alloc&) {
                p = nullptr;
            } catch (...) {
                out.add("threw something else than std::bad_alloc for " + request(bytes, alignment));
            }
            static_cast<void>(p);
        }
        usable();
    }
}

inline void equality(subject& one, subject& two, findings& out) {
    std::pmr::memory_resource& a = one.top();
    std::pmr::memory_resource& b = two.top();
    std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();
    std::pmr::memory_resource& none = *std::pmr::null_memory_resource();
    if (!a.is_equal(a) || !(a == a)) {
        out.add("is not equal to itself");
    }
    if (a.is_equal(b) != b.is_equal(a)) {
        out.add("is equal to another resource that is not equal to it");
    }
    if (a.is_equal(none) || none.is_equal(a)) {
        out.add("is equal to null_memory_resource()");
    }
    if (a.is_equal(heap) != heap.is_equal(a)) {
        out.add("is equal to new_delete_resource(), which is not equal to it, or the other way round");
    }
    if (a.is_equal(b)) {  // a promise: each frees what the other allocated
        void* const p = a.allocate(40, 8);
        b.deallocate(p, 40, 8);
    }
}

/// A workload under an upstream that refuses one call. Returns: whether it came to that.
inline bool refused_once(const builder& build, std::size_t after, findings& out) {
    recording_upstream upstream(out);
    upstream.refuse_after(after);
    std::unique_ptr<subject> s;
    try {
        s = build(upstream);
    } catch (const std::bad_alloc&) {
        return true;  // at construction: nothing may be left in the upstream
    }
    holder blocks(s->top(), out);
    random_numbers random(3);
    std::size_t refusals = 0;
    for (const std::size_t bytes : {16UL, 100UL, 5000UL, 16UL, 40000UL, 70000UL, 8UL, 100UL}) {
        refusals += blocks.take(bytes, 16) ? 0 : 1;
    }
    if (refusals > 1) {
        out.add("refused " + std::to_string(refusals) + " requests after the upstream refused one");
    }
    blocks.free_all(random);
    return upstream.refused();
}

inline void many_threads(std::pmr::memory_resource& r, const traits& t, findings& out) {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < t.threads; ++i) {
        threads.emplace_back([&, i] { churn(r, t, 100 + i, out); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace detail

/// Effects: builds the resource several times and asks it for everything it must do. Returns: what it does wrong, in
///   words; empty if nothing was found.
[[nodiscard]] inline std::vector<std::string> check(const builder& build, const traits& t = {}) {
    detail::findings out;
    const auto with_one = [&](const char* part, const std::function<void(std::pmr::memory_resource&)>& ask) {
        out.begin(part);
        detail::recording_upstream upstream(out);
        const std::unique_ptr<subject> s = build(upstream);
        ask(s->top());
    };
    with_one("sizes and alignments", [&](auto& r) { detail::sweep(r, t, out); });
    with_one("allocating and freeing in random order", [&](auto& r) { detail::churn(r, t, 4, out); });
    with_one("zero bytes", [&](auto& r) { detail::no_bytes(r, t, out); });
    with_one("sizes that cannot be", [&](auto& r) { detail::impossible_sizes(r, out); });
    if (t.threads != 0) {
        with_one("threads", [&](auto& r) { detail::many_threads(r, t, out); });
    }
    {
        out.begin("equality");
        detail::recording_upstream upstream(out);
        const std::unique_ptr<subject> one = build(upstream);
        const std::unique_ptr<subject> two = build(upstream);
        detail::equality(*one, *two, out);
    }
    if (t.upstream_may_refuse) {
        out.begin("an upstream that refuses");
        std::size_t after = 0;
        while (after < 64 && detail::refused_once(build, after, out)) {
            ++after;
        }
        if (after == 0) {
            out.add("takes nothing from its upstream");
        }
    }
    return out.take();
}

}  // namespace conformance
